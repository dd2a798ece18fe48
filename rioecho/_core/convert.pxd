# Python's objects as C's values: sizes, times, descriptors; and C's errors as Python's. See convert.pyx.
#
# A wrong object is a ValueError or a TypeError that names it.

from cpython.exc cimport PyErr_Clear, PyErr_Occurred
from cpython.long cimport PyLong_CheckExact
from cpython.number cimport PyNumber_AsSsize_t
from libc.errno cimport EBADF
from libc.stdint cimport int64_t


cdef extern from "Python.h":
    Py_ssize_t PyLong_AsSsize_t(object n) noexcept   # -1 may be an error, which is asked for only then


cdef inline Py_ssize_t to_limit(object n, object name) except -2:
    """A size argument for which None and any negative number mean "no limit": -1."""
    cdef Py_ssize_t size
    if PyLong_CheckExact(n):   # the usual case, without the calls that the general one needs
        size = PyLong_AsSsize_t(n)
        if size >= 0:
            return size
        if not PyErr_Occurred():
            return -1
        PyErr_Clear()
    return any_to_limit(n, name)


cdef inline Py_ssize_t any_to_limit(object n, object name) except -2:
    cdef Py_ssize_t size
    if n is None:
        return -1
    try:
        size = PyNumber_AsSsize_t(n, OverflowError)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(n).__name__}") from None
    except OverflowError:
        if n < 0:
            return -1
        raise ValueError(f"{name} is larger than any object can be: {n}") from None
    return max(size, -1)


cdef inline Py_ssize_t to_size(object n, object name) except -1:
    """A size argument that must be there and must not be negative."""
    cdef Py_ssize_t size
    if n is None:
        raise TypeError(f"{name} must be an integer, not None")
    size = to_limit(n, name)
    if size < 0:
        raise ValueError(f"{name} must not be negative: {n}")
    return size


cdef int64_t to_nanoseconds(object timeout) except -2
cdef object os_error(int err)
cdef int descriptor_of(object source) except -1
cdef bint is_tls(object source) except -1


cdef inline int check_timeout(object timeout) except -1:
    """Refuse a wrong `timeout` argument also where the call does not come to use it."""
    if timeout is not ...:
        to_nanoseconds(timeout)
    return 0


cdef inline int check_source(object source, int fd) except -1:
    """Is the descriptor still the source's? Its number may belong to a stranger by now."""
    if isinstance(source, int):
        return 0
    try:
        if source.fileno() == fd:
            return 0
    except ValueError:
        pass   # what a closed file says
    raise OSError(EBADF, "the source of this descriptor was closed under it")

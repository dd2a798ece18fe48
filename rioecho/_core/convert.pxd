# Conversion of Python objects to C values (sizes, times, descriptors) and of C errors to exceptions; see convert.pyx.
#
# An invalid object raises a ValueError or a TypeError that names the argument.

from cpython.exc cimport PyErr_Clear, PyErr_Occurred
from cpython.long cimport PyLong_CheckExact
from cpython.number cimport PyNumber_AsSsize_t
from libc.errno cimport EBADF
from libc.stdint cimport int64_t

from rioecho._core.fdio cimport rio_fd


cdef extern from "rioecho/_core/compat.h":
    Py_ssize_t rio_int_value(object n) noexcept   # -1 may be an error; callers check only then


cdef object TooLarge


cdef inline Py_ssize_t to_limit(object n, object name) except -2:
    """Convert a size argument; None and any negative number mean "no limit" and give -1."""
    cdef Py_ssize_t size
    if PyLong_CheckExact(n):   # the usual case, which needs fewer calls than the general one
        size = rio_int_value(n)
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
        raise TooLarge(f"{name} is larger than any object can be: {n}") from None
    return max(size, -1)


cdef inline Py_ssize_t to_size(object n, object name) except -1:
    """Convert a size argument that must not be None or negative."""
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
cdef int open_stream(int fd, rio_fd *f) except -1
cdef bint is_tls(object source) except -1


cdef inline int check_timeout(object timeout) except -1:
    """Raise for an invalid ``timeout`` argument, even if the call will not use it."""
    if timeout is not ...:
        to_nanoseconds(timeout)
    return 0


cdef inline int check_source(object source, int fd) except -1:
    """Raise OSError (EBADF) if ``source`` no longer has descriptor ``fd``: the number may have been reused.

    A source whose descriptor is not used has -1, and reports itself that it was closed.
    """
    if fd < 0 or isinstance(source, int):
        return 0
    try:
        if source.fileno() == fd:
            return 0
    except ValueError:
        pass   # raised by a closed file
    raise OSError(EBADF, "the object that owns this descriptor was closed")

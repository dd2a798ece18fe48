"""Python's objects as C's values, and C's errors as Python's: times, descriptors, errno.

Sizes are in convert.pxd, inline: they are converted on the hot path.
"""

import math
import sys

from libc.errno cimport EBADF
from libc.stdint cimport int64_t
from libc.string cimport strerror


cdef extern from "Python.h":
    int PyObject_AsFileDescriptor(object source) except -1


cdef object os_error(int err):
    """The OSError subclass for an errno."""
    return OSError(err, strerror(err).decode("utf-8", "replace"))


cdef int64_t to_nanoseconds(object timeout) except -2:
    """Seconds or None, checked, as the nanoseconds of rio_call."""
    cdef double seconds
    if timeout is None:
        return -1
    try:
        seconds = timeout
    except TypeError:
        raise TypeError(f"timeout must be None or a number of seconds, not {type(timeout).__name__}") from None
    except OverflowError:
        seconds = math.inf if timeout > 0 else -1
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    if seconds >= 9e9:   # 285 years: past what the clock can add, and as good as for ever
        return -1
    return <int64_t>math.ceil(seconds * 1e9)


cdef int descriptor_of(object source) except -1:
    """The descriptor of an int or of an object with fileno()."""
    if hasattr(source, "fileno") and source.fileno() == -1:   # what a closed socket says
        raise OSError(EBADF, f"Bad file descriptor: closed: {source!r}")
    try:
        return PyObject_AsFileDescriptor(source)
    except OverflowError:
        raise ValueError(f"no descriptor has the number {source}") from None


cdef bint is_tls(object source) except -1:
    """Report whether this is an ssl.SSLSocket, without importing the ssl module: until it is imported there is none."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(source, ssl.SSLSocket)

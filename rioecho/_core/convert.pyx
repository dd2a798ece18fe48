"""Conversion of Python objects to C values and of C errors to exceptions: times, descriptors, errno.

The conversion of sizes is inline, in convert.pxd, because it is on the hot path.
"""

import sys

from libc.errno cimport EBADF
from libc.stdint cimport int64_t
from libc.string cimport strerror

from rioecho._core.fdio cimport FD_SOCKET, fd_open, fd_open_socket, rio_fd


cdef extern from "Python.h":
    int PyObject_AsFileDescriptor(object source) except -1


class TooLarge(OverflowError, ValueError):
    """A size that no object can have: a ``ValueError``, which is also the ``OverflowError`` that io raises."""


cdef object os_error(int err):
    """Return the exception for an errno, of the matching subclass of OSError."""
    return OSError(err, strerror(err).decode("utf-8", "replace"))


cdef int64_t to_nanoseconds(object timeout) except -2:
    """Convert a timeout, seconds or None, to the nanoseconds of ``rio_call``; -1 for no limit."""
    cdef double seconds, nanoseconds
    cdef int64_t whole
    if timeout is None:
        return -1
    try:
        seconds = timeout
    except TypeError:
        raise TypeError(f"timeout must be None or a number of seconds, not {type(timeout).__name__}") from None
    except OverflowError:
        seconds = 1e300 if timeout > 0 else -1
    if not seconds >= 0:   # negative, or not a number
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    if seconds >= 9e9:   # 285 years: adding it to the clock could overflow
        return -1
    nanoseconds = seconds * 1e9
    whole = <int64_t>nanoseconds
    return whole + (whole < nanoseconds)


cdef int descriptor_of(object source) except -1:
    """Return the descriptor of an int or of an object with ``fileno()``."""
    if hasattr(source, "fileno") and source.fileno() == -1:   # a closed socket
        raise OSError(EBADF, f"Bad file descriptor: closed: {source!r}")
    try:
        return PyObject_AsFileDescriptor(source)
    except OverflowError:
        raise ValueError(f"file descriptor out of range: {source}") from None


cdef int open_stream(int fd, rio_fd *f) except -1:
    """Initialise f for a descriptor.

    Raises ``TypeError`` if it is a socket that carries packets.
    """
    cdef int err
    if fd_open_socket(f, fd):
        return 0
    err = fd_open(f, fd)
    if err:
        raise os_error(err)
    if f.kind == FD_SOCKET:
        raise TypeError(
            "a byte stream is required: this socket is of a type that carries packets (SOCK_DGRAM, SOCK_SEQPACKET), "
            "which a read would cut; use its own recv() and send()"
        )
    return 0


cdef bint is_tls(object source) except -1:
    """Report whether the source is an ``ssl.SSLSocket``, without importing ssl: before its import there is none."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(source, ssl.SSLSocket)

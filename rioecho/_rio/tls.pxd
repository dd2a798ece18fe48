# The transport of a Rio over an ssl.SSLSocket; see _rio/tls.pyx.

from libc.stdint cimport int64_t, uintptr_t

from rioecho._core.flag cimport flag_set
from rioecho._core.posix cimport rio_flag, rio_sigpipe
from rioecho._rio.transport cimport Transport


cdef enum:
    RECORD = 16384   # maximum payload of a TLS record (RFC 8446, 5.1); one send passes no more than one record


cdef class Tls(Transport):
    cdef object sock                # the SSLSocket
    cdef int fd                     # its descriptor
    cdef object want_read, want_write, eof   # the ssl module's exception classes
    cdef rio_flag busy              # guards the SSLSocket and the fields below, except those marked atomic
    cdef flag_set flags
    cdef bytes begun                # a record that OpenSSL has begun to send, or None
    cdef object raised              # an exception raised in the middle of a call, for raise_late()
    cdef uintptr_t raised_in        # the thread that owns `raised`, or 0; atomic
    cdef int64_t own_timeout        # the socket's own timeout in nanoseconds, -1 for none; atomic
    cdef rio_sigpipe sigpipe        # signal state of the thread in an operation: OpenSSL's writes may raise SIGPIPE
    cdef object __weakref__

    cdef bint take(self) except -1
    cdef void put(self) noexcept
    cdef object own(self)
    cdef void set_begun(self, bytes record) noexcept
    cdef void keep(self, object error) noexcept
    cdef void restore(self, object timeout) noexcept
    cdef ssize_t recv_record(self, object inner, object view, char *data) except -2
    cdef ssize_t recv_pending(self, object inner, object view, size_t pending) except -2
    cdef bint send_record(self, bytes record, short *want) except -1


cdef Tls tls_of(object sock)

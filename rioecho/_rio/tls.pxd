# The transport of a Rio over an ssl.SSLSocket; see _rio/tls.pyx.

from rioecho._core.posix cimport rio_sigpipe


cdef enum:
    RECORD = 16384   # the longest TLS record (RFC 8446, 5.1): what one send begins, it can also finish


cdef class Tls:
    cdef object sock                # the SSLSocket
    cdef object want_read, want_write, eof   # the ssl module's exception classes
    cdef bytes begun                # a record that OpenSSL has begun to send, or None
    cdef object raised              # what a signal handler raised in the middle of a call, for raise_late()
    cdef unsigned long raised_in    # in which thread
    cdef int busy
    cdef unsigned long owner        # the thread that made it busy
    cdef rio_sigpipe sigpipe        # that thread's SIGPIPE: OpenSSL's writes may raise it
    cdef object __weakref__

    cdef int take(self) except -1
    cdef void put(self) noexcept
    cdef object timeout(self)
    cdef int raise_late(self) except -1
    cdef int keep(self, object error) except -1
    cdef ssize_t recv(self, char *data, size_t n, short *want) except -2
    cdef ssize_t recv_record(self, object inner, object view, char *data) except -2
    cdef ssize_t send(self, const char *data, size_t n, short *want) except -2
    cdef int send_record(self, bytes record, short *want) except -1


cdef Tls tls_of(object sock)

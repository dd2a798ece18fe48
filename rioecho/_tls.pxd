# The transport of a Rio over an ssl.SSLSocket; see _tls.pyx.

cdef class Tls:
    cdef object sock                # the SSLSocket
    cdef object want_read, want_write, eof   # the ssl module's exception classes
    cdef bytes begun                # what OpenSSL has begun to send, or None
    cdef int busy
    cdef unsigned long owner        # the thread that made it busy

    cdef int take(self) except -1
    cdef ssize_t attempt(self, object call, tuple arguments, short blocked, short *want) except -2
    cdef ssize_t recv(self, char *data, size_t n, short *want) except -2
    cdef ssize_t send(self, const char *data, size_t n, short *want) except -2

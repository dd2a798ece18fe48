# The transport of a Rio over an ssl.SSLSocket; see _rio/tls.pyx.

from libc.stdint cimport int64_t

from rioecho._rio.tlsturns cimport TlsTurns


cdef class Tls(TlsTurns):
    cdef bint settled               # whether the handshake has been seen complete
    cdef bint ended                 # a read met the end or an error, which OpenSSL repeats without the descriptor
    cdef char *data                 # the memory of the read in progress
    cdef Py_ssize_t n               # its size

    cdef bint is_settled(self, object inner) except -1
    cdef ssize_t fail_read(self, object error) except -2
    cdef bint is_at_end(self) noexcept
    cdef Tls into(self, char *data, size_t n)
    cdef ssize_t recv_plain(self, char *data, size_t n, int64_t patience) except -2
    cdef ssize_t recv_some(self, object inner, char *data, size_t n, int64_t patience) except -2
    cdef bint waits_at_most(self, int64_t patience) except -1
    cdef ssize_t recv_record(self, object inner, char *data, size_t n) except -2
    cdef ssize_t recv_pending(self, object inner, char *data, size_t n, size_t pending) except -2
    cdef ssize_t send_some(self, object inner, const char *data, size_t n, short *want) except -2
    cdef int send_record(self, object inner, bytes record, bint fits, short *want) except -1
    cdef ssize_t send_plain(self, bytes data, short *want) except -2

# The transport of a Rio over an ssl.SSLSocket; see _rio/tls.pyx.

from libc.stdint cimport int64_t, uintptr_t

from rioecho._core.flag cimport flag_set
from rioecho._core.posix cimport rio_flag, rio_mutex
from rioecho._rio.transport cimport Transport


cdef enum:
    RECORD = 16384   # maximum payload of a TLS record (RFC 8446, 5.1); one send passes no more than one record


cdef class Window:
    cdef char *data
    cdef Py_ssize_t n


cdef class Tls(Transport):
    cdef object sock                # the SSLSocket
    cdef int fd                     # its descriptor
    cdef object want_read, want_write, eof   # the ssl module's exception classes
    cdef rio_flag receiving         # guards OpenSSL's object; a read that waits in there shares it with one sender
    cdef rio_flag sending           # guards OpenSSL's object and `begun`
    cdef bint waiting               # whether the holder of `receiving` may be waiting inside OpenSSL
    cdef rio_mutex gate             # for taking one flag and checking the other
    cdef flag_set flags
    cdef bytes begun                # a record that OpenSSL has begun to send, or None
    cdef bint settled               # whether the handshake has been seen complete
    cdef bint ended                 # a read met the end or an error, which OpenSSL repeats without the descriptor
    cdef uintptr_t other_thread     # a thread that runs no signal handlers, or 0; atomic
    cdef Window window
    cdef size_t mutes               # odd while an operation has set the socket's timeout to 0; atomic
    cdef int64_t own_timeout        # that timeout before in nanoseconds, -1 for none; atomic
    cdef object __weakref__

    cdef bint begin(self, bint sending) except -1
    cdef bint blocked_by_other(self, bint sending) noexcept
    cdef void end(self, bint sending) noexcept
    cdef void wait_begins(self) noexcept
    cdef void wait_ends(self) noexcept
    cdef object mute(self)
    cdef void restore(self, object muted) noexcept
    cdef bint is_settled(self, object inner) except -1
    cdef void set_begun(self, bytes record) noexcept
    cdef bint from_handler(self, object error) except -1
    cdef ssize_t fail_read(self, object error) except -2
    cdef bint is_at_end(self) noexcept
    cdef Window into(self, char *data, size_t n)
    cdef ssize_t recv_plain(self, char *data, size_t n, int64_t patience) except -2
    cdef ssize_t recv_some(self, object inner, char *data, size_t n, int64_t patience) except -2
    cdef bint waits_at_most(self, int64_t patience) except -1
    cdef ssize_t recv_record(self, object inner, char *data, size_t n) except -2
    cdef ssize_t recv_pending(self, object inner, char *data, size_t n, size_t pending) except -2
    cdef bint runs_handlers(self) except -1
    cdef ssize_t send_some(self, object inner, const char *data, size_t n, short *want) except -2
    cdef int send_record(self, object inner, bytes record, bint fits, short *want) except -1
    cdef ssize_t send_plain(self, bytes data, short *want) except -2


cdef Tls tls_of(object sock)

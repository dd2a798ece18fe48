# Whose turn it is inside a TLS connection, what is half sent, and how long its socket waits; see _rio/tlsturns.pyx.

from libc.stdint cimport int64_t, uintptr_t

from rioecho._core.flag cimport flag_set
from rioecho._core.posix cimport rio_flag, rio_mutex
from rioecho._rio.transport cimport Transport


cdef class TlsTurns(Transport):
    # `source` is the ssl.SSLSocket, or the connection of pyOpenSSL.
    cdef object sock                # the socket that waits: the SSLSocket itself, or the one below the connection
    cdef int fd                     # its descriptor, which tells whether a read that waits inside OpenSSL may go on
    cdef rio_flag receiving         # guards OpenSSL's object; a read that waits in there shares it with one sender
    cdef rio_flag sending           # guards OpenSSL's object and what is half sent
    cdef bint waiting               # whether the holder of `receiving` may be waiting inside OpenSSL
    cdef rio_mutex gate             # for taking one flag and checking the other
    cdef flag_set flags
    cdef bytes begun                # a record that OpenSSL has begun to send, or None; guarded by `sending`
    cdef uintptr_t other_thread     # a thread that runs no signal handlers, or 0; atomic
    cdef size_t mutes               # odd while an operation has set the socket's timeout to 0; atomic
    cdef int64_t own_timeout        # that timeout before in nanoseconds, -1 for none; atomic

    cdef bint begin(self, bint sending) except -1
    cdef bint blocked_by_other(self, bint sending) noexcept
    cdef void end(self, bint sending) noexcept
    cdef void wait_begins(self) noexcept
    cdef void wait_ends(self) noexcept
    cdef void set_begun(self, bytes record) noexcept
    cdef object mute(self)
    cdef void restore(self, object muted) noexcept

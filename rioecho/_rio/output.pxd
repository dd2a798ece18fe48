# The output buffer and its lock, what a read sends, and the wait for either direction; see _rio/output.pyx.

from libc.stdint cimport int64_t

from rioecho._core.posix cimport sigset_t
from rioecho._rio.limits cimport Limits, rio_call


cdef enum:
    NOTHING = -1   # as a `keep` argument: no byte may stay in `out`, and no TLS record may be half sent


cdef class Output(Limits):
    cdef bint claimed   # whether a writer has begun to send the bytes of `out` without `sending`, which guards this
    cdef int lock(self, rio_call *call, sigset_t *before) except -1
    cdef int let_holder_go_on(self, rio_call *call, size_t *yields) except -1
    cdef void unlock(self, const sigset_t *before) noexcept
    cdef bint lock_at_once(self, sigset_t *before) except -1
    cdef int hold_signals(self, sigset_t *before) except -1
    cdef void release_signals(self, const sigset_t *before) noexcept

    cdef bint owes(self, ssize_t keep) noexcept
    cdef bint is_claimed(self) noexcept
    cdef bint has_unsent(self, rio_call *call, ssize_t keep) except -1
    cdef bint may_owe(self) except -1
    cdef int raise_kept(self, rio_call *call) except -1
    cdef int raise_reset(self, rio_call *call) except -1
    cdef int hold_output(self, rio_call *call, const char *data, size_t n) except -1
    cdef size_t take_back(self, size_t n) noexcept

    cdef ssize_t send_once(self, rio_call *call, const char *data, size_t n, int *err, short *want) except -2
    cdef short tied_flush(self) except -1
    cdef short send_held(self) except -1
    cdef int wait_for(self, rio_call *call, short want, bint tied, int64_t longest=*) except -1

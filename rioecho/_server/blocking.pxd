# The echo of one descriptor in C; see _server/blocking.pyx.

from libc.stdint cimport int64_t, uint64_t

from rioecho._core.budget cimport share_t
from rioecho._core.buffer cimport rio_buffer
from rioecho._core.counts cimport counts_t
from rioecho._core.fdio cimport rio_fd
from rioecho._server.echo cimport phase


cdef enum answer:
    DONE          # the input has ended and everything has gone back
    GOT_LINE      # `ready` bytes are one line, about to go back (only if asked for)
    INTERRUPTED   # run the signal handlers
    TIMED_OUT     # no progress for the time allowed
    FAILED        # see `err`


cdef struct echo_t:
    rio_fd f
    rio_buffer b         # received and not yet sent back
    size_t ready         # of those, how many may go back now
    size_t scanned       # of those behind them, how many are known to hold no newline
    size_t max_line      # a longer line goes back in pieces; 0: raw, every byte goes back at once
    bint by_line         # answer GOT_LINE
    bint main_thread     # where signal handlers run
    bint moved           # bytes have, since the handlers ran
    bint slept           # for as long as the memory of a long line is kept
    bint ended           # the input has
    phase phase
    int stop_fd          # readable when it is time to stop, or -1
    int64_t timeout      # nanoseconds without progress; -1: for ever
    int64_t drain        # nanoseconds for draining and lingering
    int64_t deadline     # 0: to be set anew, progress was made; fixed once draining
    int unacknowledged   # of what was sent, when that was last looked at; see peer_took()
    int err
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t lines
    counts_t *totals     # where they are counted too; never NULL
    counts_t spare       # for those who have no totals
    share_t memory       # what the buffer is taken from
    bint favoured        # it may use the memory's reserve
    int nap              # milliseconds until the next look whether there is memory; 0: it does not wait for any


cdef answer echo_turn(echo_t *e) noexcept nogil

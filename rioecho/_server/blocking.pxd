# The echo of one descriptor in C; see _server/blocking.pyx.

from libc.stdint cimport int64_t, uint64_t

from rioecho._core.budget cimport share_t
from rioecho._core.buffer cimport rio_buffer
from rioecho._core.counts cimport counts_t
from rioecho._core.fdio cimport rio_fd
from rioecho._server.echo cimport phase
from rioecho._server.proxy cimport proxy_t


cdef enum answer:
    DONE          # EOF, and everything has been sent
    OPENED        # the PROXY header has been read (`header`), or the first bytes to be echoed (then not `opening`)
    NO_HEADER     # it does not begin with a PROXY header
    GOT_LINE      # the first `ready` bytes are a line about to be sent (only with `by_line`)
    INTERRUPTED   # run the signal handlers
    TIMED_OUT     # no progress within the timeout
    FAILED        # see `err`


cdef struct echo_t:
    rio_fd f
    rio_buffer b         # bytes received and not yet sent
    size_t ready         # bytes at its start that may be sent now
    size_t scanned       # bytes after those that are known to contain no newline
    size_t max_line      # a longer line is sent in pieces; 0: raw, every byte is sent at once
    bint by_line         # return GOT_LINE for each line
    bint main_thread     # whether this thread runs signal handlers
    bint moved           # whether bytes were read or sent since the handlers ran
    bint slept           # whether the last wait expired; spare memory is released then
    bint opening         # return OPENED at the first bytes; until then there were none
    bint ended           # whether EOF was read
    phase phase
    proxy_t *header      # of a connection that begins with a PROXY header, or NULL
    int stop_fd          # readable when the stop is requested, or -1
    int64_t timeout      # nanoseconds without progress; -1: no limit
    int64_t drain        # nanoseconds for draining and lingering
    int64_t deadline     # 0: progress was made, set it again; fixed once draining
    int64_t patience     # until then draining waits for the first bytes
    int unacknowledged   # bytes sent and not acknowledged, at the last check; see peer_took()
    int err
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t lines
    counts_t *totals     # counts that these are added to; never NULL
    counts_t spare       # `totals` of an echo without a Counts
    share_t memory       # the budget that the buffer is taken from
    bint favoured        # whether it may use the reserve of the budget
    int nap              # milliseconds until the next check for memory; 0: it does not wait for memory


cdef answer echo_turn(echo_t *e) noexcept nogil
cdef bint echo_is_unused(const echo_t *e, answer end) noexcept nogil

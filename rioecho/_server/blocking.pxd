# The echo of one descriptor in C; see _server/blocking.pyx.

from libc.stdint cimport int64_t, uint64_t

from rioecho._core.buffer cimport rio_buffer
from rioecho._core.counts cimport counts_t
from rioecho._core.fdio cimport rio_fd
from rioecho._core.posix cimport rio_unacknowledged


cdef enum:
    CHUNK = 65536   # what is received at once
    LOOKS = 8       # at what the peer takes, in the time that it may take nothing; so it has at most an eighth more


cdef enum phase:
    ECHOING
    DRAINING    # told to stop: echo what has arrived, wait for no more
    LINGERING   # all is echoed and our side is closed: read on until the peer has closed its own


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
    counts_t *totals     # where they are counted too, or NULL


cdef inline bint peer_took(int fd, int *unacknowledged) noexcept nogil:
    """Has the peer, since the number was put down, taken some of what waits for it? The number is put down again.

    poll() does not say so before a third of the send buffer is free, which may be more than a slow reader takes in
    all of its time.
    """
    cdef int before = unacknowledged[0]
    unacknowledged[0] = rio_unacknowledged(fd)
    return unacknowledged[0] < before


cdef answer echo_turn(echo_t *e) noexcept nogil

# The loop of the blocking echo of one descriptor, without the GIL. All of its state is in one struct. echo_turn()
# returns a code for what the caller is to do, who then calls it again; nothing is lost by returning at any point. The
# callers are _server/blocking.pyx, which needs Python for that, and a child process (_server/childside.pxd).
#
# Input is read only when everything that may be sent has been sent, so a peer that sends and never reads is stopped by
# back-pressure.

from libc.errno cimport ECONNRESET, EINTR, ENOMEM, EPIPE
from libc.stdint cimport SIZE_MAX, int64_t, uint64_t

from rioecho._core.budget cimport (
    share_add,
    share_favour,
    share_favour_no_more,
    share_reserve_room,
    share_room,
    share_t,
    share_take,
)
from rioecho._core.buffer cimport (
    FOUND,
    buffer_added,
    buffer_consume,
    buffer_fits,
    buffer_growth,
    buffer_held,
    buffer_room,
    buffer_start,
    find_frame,
    rio_buffer,
)
from rioecho._core.counts cimport counts_t
from rioecho._core.fdio cimport (
    FD_SOCKET,
    WOKEN,
    deadline_after,
    fd_ready,
    fd_try_read,
    fd_wait_or_wake,
    rio_fd,
    would_block,
)
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    SHUT_WR,
    rio_add_relaxed,
    rio_assert,
    rio_atomic_add,
    rio_load_relaxed,
    rio_monotonic_ns,
    rio_socket_error,
    rio_unacknowledged,
    shutdown,
)
from rioecho._server.echo cimport (
    CHUNK,
    CHUNK_MIN,
    DRAINING,
    ECHOING,
    LINGERING,
    LOOKS,
    MEMORY_LOOK,
    MEMORY_LOOK_MAX,
    PAUSED,
    echo_due,
    echo_send,
    held_resize,
    held_shrink,
    patience,
    peer_took,
    phase,
)
from rioecho._server.proxy cimport PROXY_DONE, PROXY_WRONG, proxy_answer, proxy_feed, proxy_is_begun, proxy_t


cdef enum:
    TURNS = 1024               # system calls between two checks of signals and of the drain deadline
    SPARE_KEPT = 100_000_000   # nanoseconds for which the memory of a long line is kept for the next one


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
    counts_t *totals     # counts that these are added to; never NULL
    counts_t spare       # `totals` of an echo without a Counts
    share_t memory       # the budget that the buffer is taken from
    bint favoured        # whether it may use the reserve of the budget
    int nap              # milliseconds until the next check for memory; 0: it does not wait for memory


cdef inline void echo_frame(echo_t *e) noexcept nogil:
    """Set ``ready`` to the length of the whole lines in the buffer (``by_line``: of one), or of a piece due anyway."""
    cdef size_t held = buffer_held(&e.b)
    cdef size_t n = 0
    cdef uint64_t lines = 0
    rio_assert(e.scanned <= held)
    if e.by_line and e.max_line and (
        find_frame(buffer_start(&e.b), held, b"\n", 1, &e.scanned, SIZE_MAX, &n) == FOUND
    ):
        lines = 1
    else:
        n = echo_due(buffer_start(&e.b) + e.scanned, e.scanned, held - e.scanned, e.max_line, e.ended, &lines)
    e.ready = n
    e.scanned = 0 if n or e.max_line == 0 else held
    if lines:
        rio_atomic_add(&e.totals.lines, lines)


cdef inline void echo_favour_no_more(echo_t *e) noexcept nogil:
    if e.favoured:
        held_shrink(&e.memory, &e.b)   # before another connection may use the reserve
        e.favoured = False
        share_favour_no_more(&e.memory)


cdef inline ssize_t echo_room(echo_t *e) noexcept nogil:
    """Reserve space to read into.

    Returns the number of bytes, 0 if the budget has no memory (wait for some), or -1 if the allocation fails.
    """
    cdef size_t held = buffer_held(&e.b)
    cdef size_t more, left
    if not buffer_fits(&e.b, held + 1):
        more = buffer_growth(&e.b, held + 1) - e.b.cap
        if not share_take(&e.memory, more):
            left = share_room(&e.memory)
            more = min(left, <size_t>CHUNK)
            if held == 0:
                more = CHUNK_MIN
                share_add(&e.memory, more)
            elif left < CHUNK_MIN or not share_take(&e.memory, more):
                e.favoured = e.favoured or share_favour(&e.memory, e.b.cap)
                left = share_reserve_room(&e.memory, e.b.cap) if e.favoured else 0
                if left < CHUNK_MIN:
                    return 0
                more = min(left, <size_t>CHUNK)
                share_add(&e.memory, more)
        if held_resize(&e.memory, &e.b, e.b.cap + more) < 0:
            return -1
    return min(buffer_room(&e.b), <size_t>CHUNK)


cdef inline void echo_drain(echo_t *e) noexcept nogil:
    e.phase = DRAINING
    e.deadline = deadline_after(e.drain)
    e.patience = patience(e.drain)


cdef inline answer echo_open(echo_t *e) noexcept nogil:
    """Take the PROXY header, if one is expected, from the buffer.

    Returns OPENED if it is complete or none is expected, INTERRUPTED if it is incomplete, or NO_HEADER.
    """
    cdef size_t used = 0
    cdef proxy_answer answer = PROXY_DONE
    if e.header != NULL and not e.header.done:
        answer = proxy_feed(e.header, buffer_start(&e.b), buffer_held(&e.b), &used)
        buffer_consume(&e.b, used)
    e.opening = buffer_held(&e.b) == 0
    return OPENED if answer == PROXY_DONE else NO_HEADER if answer == PROXY_WRONG else INTERRUPTED


cdef inline bint echo_is_unused(const echo_t *e, answer end) noexcept nogil:
    """Report whether the connection ended before its first byte, by EOF or a reset: a load balancer's check."""
    if not e.opening or (e.header != NULL and proxy_is_begun(e.header)):
        return False
    return end == DONE or (end == FAILED and (e.err == ECONNRESET or e.err == EPIPE))


cdef inline answer echo_turn(echo_t *e) noexcept nogil:
    """Echo until there is something to report."""
    cdef ssize_t count
    cdef unsigned int turns = 0
    cdef short events
    cdef int ready, wake_fd
    cdef int64_t until
    cdef bint looks, spares
    cdef answer opened
    cdef bint input_ended = False   # whether EOF arrived while waiting for memory
    # Checked here, because a peer that never stops sending keeps the loop below from ever waiting.
    if e.phase == ECHOING:
        if e.stop_fd >= 0 and fd_ready(e.stop_fd, POLLIN):
            echo_drain(e)
    elif rio_monotonic_ns() >= e.deadline:
        return TIMED_OUT
    while turns < TURNS:
        turns += 1
        # Send what is ready.
        if e.ready:
            rio_assert(e.ready <= buffer_held(&e.b))
            count = echo_send(&e.f, buffer_start(&e.b), e.ready, NULL, 0, e.totals, &e.err)
            if count > 0:
                buffer_consume(&e.b, count)
                e.ready -= count
                rio_add_relaxed(&e.bytes_out, count)
                e.moved = True
                if e.ready == 0:
                    echo_favour_no_more(e)
                if e.phase == ECHOING:
                    e.deadline = 0
                continue
            if count < 0 and e.err == EINTR:
                return INTERRUPTED
            if count < 0 and not would_block(e.err):
                return FAILED
            events = POLLOUT
        else:
            # Find more to send, first in the buffer, then in the input.
            echo_frame(e)
            if e.ready:
                if e.by_line:
                    return GOT_LINE
                continue
            if e.ended:
                if e.phase != DRAINING:
                    return DONE
                if shutdown(e.f.fd, SHUT_WR) < 0:
                    return DONE   # disconnected, or not a socket: nothing to linger for
                e.phase = LINGERING
                e.ended = False
                continue
            count = echo_room(e)
            if count < 0:
                e.err = ENOMEM
                return FAILED
            if count > 0:
                e.nap = 0
                count = fd_try_read(&e.f, e.b.data + e.b.w, count, &e.err)
                if count > 0:
                    if e.phase == LINGERING:
                        continue   # too late: discard them, the next read overwrites them
                    buffer_added(&e.b, count)
                    opened = INTERRUPTED
                    if e.opening:
                        opened = echo_open(e)
                        if opened == NO_HEADER:
                            return opened
                        count = buffer_held(&e.b)
                    if count and e.phase == ECHOING:   # a PROXY header is no progress
                        e.deadline = 0
                    rio_add_relaxed(&e.bytes_in, count)
                    rio_atomic_add(&e.totals.bytes_in, count)
                    e.moved = True
                    if opened != INTERRUPTED:
                        return opened
                    continue
                if count < 0 and e.err == EINTR:
                    return INTERRUPTED
                if count < 0 and not would_block(e.err):
                    return FAILED
                if count == 0 or (
                    e.phase == DRAINING and (rio_load_relaxed(&e.bytes_in) or rio_monotonic_ns() >= e.patience)
                ):
                    if e.opening and e.header != NULL and proxy_is_begun(e.header):
                        return NO_HEADER if count == 0 else DONE   # the stop is no error of the peer's
                    e.ended = True
                    continue
                events = POLLIN
            elif e.phase == DRAINING or input_ended:
                # Every byte received is echoed before the close, even without a newline. Send the buffer now rather
                # than wait for memory: the connections that have it may be waiting for more themselves.
                input_ended = False
                e.ready = buffer_held(&e.b)
                e.scanned = 0
                if e.by_line:
                    return GOT_LINE
                continue
            else:
                events = PAUSED
                e.nap = min(max(e.nap * 2, <int>MEMORY_LOOK), <int>MEMORY_LOOK_MAX)
        # Nothing can be read or sent: wait. A signal that arrived before the wait would not interrupt it.
        if e.main_thread and e.moved:
            e.moved = False
            return INTERRUPTED
        # An idle connection holds no memory; but the next long line may follow at once, and new pages are expensive.
        spares = e.ready == 0 and e.b.cap > CHUNK and not e.slept and share_room(&e.memory) >= e.b.cap
        if e.ready == 0 and not spares:
            held_shrink(&e.memory, &e.b)
        if e.deadline == 0:
            e.deadline = deadline_after(e.timeout)
            if events == POLLOUT:
                e.unacknowledged = rio_unacknowledged(e.f.fd)
        wake_fd = e.stop_fd if e.phase == ECHOING else -1
        looks = events == POLLOUT and e.phase == ECHOING and e.timeout > 0
        until = min(e.deadline, deadline_after(e.timeout // LOOKS)) if looks else e.deadline
        if spares:
            until = min(until, deadline_after(SPARE_KEPT))
        if events == PAUSED:
            until = min(until, deadline_after(e.nap * <int64_t>1_000_000))
        if events == POLLIN and e.phase == DRAINING:
            until = min(until, e.patience)
        ready = fd_wait_or_wake(e.f.fd, events, wake_fd, until, &e.err)
        e.slept = ready == 0
        if ready < 0:
            return INTERRUPTED if e.err == EINTR else FAILED
        if ready == 0:
            if looks and peer_took(e.f.fd, &e.unacknowledged):
                e.deadline = 0
            elif until == e.deadline:
                return TIMED_OUT
            continue
        if ready == WOKEN:
            echo_drain(e)
        elif events == PAUSED:
            e.err = rio_socket_error(e.f.fd) if e.f.kind == FD_SOCKET else 0
            if e.err:
                return FAILED
            input_ended = True
    return INTERRUPTED

# The turns of a load loop: the schedule, the wait, and what all of its connections have in common. One connection is in
# _load/connection.pxd; the thread that runs the turns is started in _load/loop.pyx.

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t

from rioecho._core.poller cimport READY_MAX, poller_wait, ready_t
from rioecho._core.posix cimport (
    POLLOUT,
    rio_bool_get,
    rio_bool_set,
    rio_monotonic_ns,
    rio_thread_ns,
    rio_wait_ns,
    rio_wake_exactly,
    write,
)
from rioecho._load.connection cimport (
    ARRIVED,
    DRAINING,
    FAILED,
    OVER,
    SENDING,
    STALLED,
    conn_fill_window,
    conn_receive,
    conn_send_pending,
    conn_take_back,
    conn_take_over,
    load_conn,
    load_due,
    load_fail,
    load_t,
    sent_t,
)
from rioecho._load.histogram cimport hist_record, hist_record_falling


cdef enum:
    LOOK_UP = 20_000_000          # maximum time in nanoseconds between two checks of `stopping`
    FAREWELL = 1_000_000_000      # nanoseconds for which a stopped loop waits for the next byte of an echo


cdef inline void load_schedule_due(load_t *l, int64_t now) noexcept nogil:
    """Release the messages that have become due, and send those that the pipeline has room for."""
    cdef double passed = <double>(now - l.start) / l.interval
    cdef uint64_t reached, i, n
    cdef load_conn *c
    if passed < 0:
        return
    reached = <uint64_t>passed + 1
    if reached <= l.issued:
        return
    # A late loop does several rounds at once.
    n = reached - l.issued
    if now >= l.begin:
        hist_record_falling(l.lateness, now - l.start - <int64_t>(<double>l.issued * l.interval), l.interval, n)
    for i in range(min(n, <uint64_t>l.n)):
        c = &l.conns[(l.issued + i) % l.n]
        c.owed += (n - i - 1) // l.n + 1
        conn_fill_window(l, c, rio_monotonic_ns())
    l.issued = reached


cdef inline int load_wait(load_t *l, ready_t *ready, int64_t now, int *err) noexcept nogil:
    """Call poller_wait until the next message is due, the measurement ends or `stopping` must be checked."""
    cdef int64_t until = now + LOOK_UP
    cdef int64_t left
    cdef int n
    if l.phase == SENDING:
        until = min(until, l.end)
        if l.interval > 0:
            until = min(until, l.start + <int64_t>(<double>l.issued * l.interval))
            n = poller_wait(&l.poller, ready, 0, err)
            left = until - rio_monotonic_ns()
            if n != 0 or left <= 0:
                return n
            if l.poller.epoll < 0:
                return poller_wait(&l.poller, ready, <int>(left // 1_000_000), err)
            # A millisecond, the unit of epoll_wait, is long compared with the latency of a message.
            rio_wait_ns(l.poller.epoll, left)
            return poller_wait(&l.poller, ready, 0, err)
    left = max(until - now, <int64_t>0)
    return poller_wait(&l.poller, ready, <int>((left + 999_999) // 1_000_000), err)


cdef inline void load_turn(load_t *l, int64_t now) noexcept nogil:
    """Wait, serve each ready connection once, and fail the load if it has stalled."""
    cdef ready_t ready[READY_MAX]
    cdef load_conn *c
    cdef int i, n, err = 0
    n = load_wait(l, ready, now, &err)
    if n < 0 and err != EINTR:
        load_fail(l, FAILED, NULL, 0, err)
    for i in range(n):
        c = <load_conn *>ready[i].data
        # Receive first: each echo makes room in the pipeline.
        if ready[i].events & ~POLLOUT:
            conn_receive(l, c)
        if ready[i].events & POLLOUT and c.blocked:
            conn_send_pending(l, c, rio_monotonic_ns())
        if l.phase == OVER:
            return
    # Compare with the time before the wait, and not after an interrupted wait. This process may have been suspended
    # (Ctrl-Z), and data that arrived in the meantime must be read first.
    if n >= 0 and l.in_flight and now - l.last >= l.stall and not rio_bool_get(&l.stopping):
        load_fail(l, STALLED, NULL, l.in_flight, 0)


cdef inline void load_drain(load_t *l) noexcept nogil:
    """Stop sending new messages, but complete those begun, so that the server receives whole messages."""
    cdef size_t i
    l.phase = DRAINING
    for i in range(l.n):
        conn_take_back(l, &l.conns[i])


cdef inline void load_note_idle(load_t *l, int64_t now) noexcept nogil:
    """Start the stall timeout again, because nothing is in flight, or fail if there is no connection for that long."""
    if l.down < l.n:
        l.last = now
    elif now - l.last >= l.stall:
        load_fail(l, STALLED, NULL, 0, 0)


cdef inline bint load_attend(load_t *l) noexcept nogil:
    """Take over the sockets that replace those of lost connections; return whether the loop goes on sending."""
    cdef size_t i
    rio_bool_set(&l.attention, False)
    if l.down:
        for i in range(l.n):
            if rio_bool_get(&l.conns[i].link) == ARRIVED:
                conn_take_over(l, &l.conns[i])
    return l.phase == SENDING and not rio_bool_get(&l.stopping)


cdef inline void conn_count_owed(load_t *l, const load_conn *c) noexcept nogil:
    """Record the messages that were due and never sent."""
    cdef double step = <double>l.n * l.interval   # from one message of the connection to the next
    hist_record_falling(l.since_due, l.end - load_due(l, c, c.back + c.in_flight), step, c.owed)


cdef inline void load_count_missing(load_t *l, int64_t now) noexcept nogil:
    """Record the missing messages: those in flight with their age now, those never sent with their age at the end."""
    cdef load_conn *c
    cdef sent_t *sent
    cdef size_t i, j
    cdef uint64_t k
    for i in range(l.n):
        c = &l.conns[i]
        for j in range(c.entries):
            sent = &c.sent[(c.first + j) % l.pipeline]
            hist_record(l.since_sent, now - sent.when, sent.n)
        if l.interval > 0:
            for k in range(c.back, c.back + c.in_flight):
                hist_record(l.since_due, now - load_due(l, c, k), 1)
            conn_count_owed(l, c)


cdef inline void load_send_until_called(load_t *l) noexcept nogil:
    """Take turns until the measurement ends, the load fails, or `attention` is set."""
    cdef int64_t now
    while l.phase == SENDING:
        now = rio_monotonic_ns()
        if now >= l.end or rio_bool_get(&l.attention):
            break
        if l.interval > 0:
            load_schedule_due(l, now)
        if l.in_flight == 0:
            load_note_idle(l, now)
        load_turn(l, now)


cdef inline void load_run(load_t *l) noexcept nogil:
    cdef int64_t begun = rio_monotonic_ns()
    cdef int64_t used = rio_thread_ns()
    cdef int64_t now = begun
    cdef size_t i
    cdef int asked
    l.last = now
    if l.interval > 0:
        rio_wake_exactly(True)
    else:
        for i in range(l.n):
            conn_fill_window(l, &l.conns[i], rio_monotonic_ns())
    while l.phase == SENDING:
        load_send_until_called(l)
        if l.phase != SENDING or rio_monotonic_ns() >= l.end or not load_attend(l):
            break
    l.end = min(l.end, rio_monotonic_ns())
    if l.interval > 0:
        load_schedule_due(l, l.end - 1)   # sends nothing any more, but counts what was due
    if rio_bool_get(&l.stopping):
        l.last = l.end
    if l.phase == SENDING:
        load_drain(l)
    while l.phase == DRAINING and l.in_flight:
        now = rio_monotonic_ns()
        asked = rio_bool_get(&l.stopping)
        if asked > 1 or (asked and now - l.last >= min(l.stall, <int64_t>FAREWELL)):
            break
        load_turn(l, now)
    if l.begin < l.end:
        load_count_missing(l, rio_monotonic_ns())
    rio_wake_exactly(False)
    l.phase = OVER
    l.used = rio_thread_ns() - used
    l.lasted = rio_monotonic_ns() - begun


cdef inline void *load_thread(void *data) noexcept nogil:
    """Run a load loop as a thread: C only, so that no Python error can end it or lose its outcome."""
    cdef load_t *load = <load_t *>data
    load_run(load)
    rio_bool_set(&load.ended, True)
    while write(load.wake_fd, b"e", 1) < 0 and errno == EINTR:
        pass
    return NULL

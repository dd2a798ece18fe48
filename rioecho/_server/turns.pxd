# The turns of an event loop: waiting, and what all of its connections have in common: their beginning, their deadlines,
# the memory that they wait for, and the end.

from libc.errno cimport EINTR, ENOMEM
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.budget cimport share_favour, share_room
from rioecho._core.fdio cimport deadline_after, fd_ready, milliseconds_until
from rioecho._core.poller cimport READY_MAX, poller_add, poller_remove, poller_wait, ready_t
from rioecho._core.posix cimport POLLIN, read, rio_assert, rio_monotonic_ns, rio_rare, rio_wait_ns
from rioecho._server.connection cimport (
    BROKEN,
    CUT_OFF,
    IDLE,
    conn_close,
    conn_read,
    conn_wait_for,
    conn_write,
)
from rioecho._server.echo cimport CHUNK, CHUNK_MIN, DRAINING, ECHOING, LOOKS, MEMORY_LOOK, peer_took
from rioecho._server.loop cimport (
    conn_append,
    conn_look_later,
    conn_progress,
    conn_ready,
    conn_t,
    kept_t,
    loop_gauge,
    loop_spares_free,
    loop_t,
)


cdef inline void loop_begin(loop_t *l, conn_t *c) noexcept nogil:
    """Begin with a connection."""
    cdef int err
    conn_append(l, c)
    l.active += 1
    c.phase = DRAINING if l.stopping else ECHOING
    c.looks = 0
    c.deadline = INT64_MAX if l.idle < 0 else l.now + l.pause
    c.events = POLLIN
    err = poller_add(&l.poller, c.fd, POLLIN, c)
    if err:
        conn_close(l, c, BROKEN, err)


cdef inline bint loop_take_inbox(loop_t *l) noexcept nogil:
    """Begin with the connections that were handed over; report whether there were any.

    Each pointer comes whole, for the pipe holds nothing else.
    """
    cdef conn_t *arrived[64]
    cdef ssize_t n, i
    n = read(l.inbox, arrived, sizeof(arrived)) // <ssize_t>sizeof(conn_t *)
    for i in range(n):
        if arrived[i] == NULL:
            poller_remove(&l.poller, l.inbox)
            l.inbox_ended = True
        else:
            loop_begin(l, arrived[i])
    return n > 0


cdef inline void loop_drain(loop_t *l) noexcept nogil:
    """Begin to drain."""
    cdef conn_t *c = l.all.next
    l.stopping = True
    l.drained = deadline_after(l.drain)
    poller_remove(&l.poller, l.stop_fd)
    while c != &l.all:
        c.phase = DRAINING
        c = c.next


cdef inline bint loop_drain_some(loop_t *l) noexcept nogil:
    """One read for each that may have more; report whether there is one left that may."""
    cdef conn_t *c = l.all.next
    cdef conn_t *following
    cdef bint more = False
    while c != &l.all:
        following = c.next
        if c.phase == DRAINING and conn_ready(c) == 0:
            conn_read(l, c)
        c = following
    c = l.all.next
    while c != &l.all and not more:
        more = c.phase == DRAINING and conn_ready(c) == 0
        c = c.next
    return more


cdef inline void loop_expire(loop_t *l) noexcept nogil:
    """Look after the connections whose deadline is over, and close those whose time is."""
    cdef conn_t *c
    while l.stopping and l.all.next != &l.all and l.now >= l.drained:
        conn_close(l, l.all.next, CUT_OFF, 0)
    while not l.stopping and l.all.next != &l.all and l.now >= l.all.next.deadline:
        c = l.all.next
        c.looks += 1
        if conn_ready(c) and peer_took(c.fd, &c.unacknowledged):
            conn_progress(l, c)
            continue
        if c.looks < LOOKS:
            conn_look_later(l, c)
            continue
        # It may be this thread that stood still (suspended, or short of a processor), and has not looked what has come.
        if fd_ready(c.fd, c.events):
            if conn_ready(c):
                conn_write(l, c)
            else:
                conn_read(l, c)
            # If it is not the first any more it may be closed, and that memory must not be touched.
            if l.all.next != c or l.now < c.deadline:
                continue
        conn_close(l, c, IDLE, 0)


cdef inline void loop_look(loop_t *l) noexcept nogil:
    """What is done now and then: let as many connections go on as there is memory for, give spare memory back, and have
    reported what could not be before."""
    cdef kept_t *k = l.waiting.next
    cdef kept_t *following
    cdef size_t room = share_room(&l.memory)
    l.look = INT64_MAX
    loop_spares_free(l)
    loop_gauge(l)
    while k != &l.waiting:
        following = k.next
        if l.favoured == NULL and share_favour(&l.memory, k.b.cap):
            l.favoured = k.owner
            conn_wait_for(l, k.owner, POLLIN)
        elif room >= CHUNK_MIN:
            room -= min(room, <size_t>CHUNK)
            conn_wait_for(l, k.owner, POLLIN)   # its read may find that another thread was faster: then it waits again
        k = following
    if l.waiting.next != &l.waiting:
        l.look = l.now + MEMORY_LOOK * 1_000_000
    if l.gone == NULL:
        l.gone = l.again
        l.again = NULL


cdef inline int64_t loop_deadline(const loop_t *l) noexcept nogil:
    if l.all.next == &l.all:
        return l.look
    return min(l.drained if l.stopping else l.all.next.deadline, l.look)


cdef inline bint loop_turns(loop_t *l, int *err) noexcept nogil:
    """Run until there is something to report, or an error (True), or all is done (False, and `inbox_ended`)."""
    cdef ready_t events[READY_MAX]
    cdef conn_t *c
    cdef int i, n
    # Reporting may have come in the middle of draining: some may have been read from, and not to the end.
    cdef bint more = l.stopping, stop, arrivals
    while l.active or not l.inbox_ended:
        n = poller_wait(&l.poller, events, 0 if more or l.lengths_n else milliseconds_until(loop_deadline(l)), err)
        if rio_rare(n < 0):
            if err[0] == ENOMEM:   # poll(2) needs some of the kernel's
                rio_wait_ns(-1, MEMORY_LOOK * 1_000_000)
            elif err[0] != EINTR:
                return True
            err[0] = 0
        l.now = rio_monotonic_ns()
        stop = arrivals = False
        for i in range(n):
            if events[i].data == &l.inbox:
                arrivals = True
            elif events[i].data == &l.stop_fd:
                stop = True
            else:
                c = <conn_t *>events[i].data
                if conn_ready(c):
                    conn_write(l, c)
                else:
                    conn_read(l, c)
        # Not before the others: a connection that comes may get the memory of one that went, and its events.
        if stop:
            loop_drain(l)
        if arrivals:
            loop_take_inbox(l)
        more = l.stopping and loop_drain_some(l)
        loop_expire(l)
        if rio_rare(l.now >= l.look):
            loop_look(l)
        if l.gone != NULL or l.lengths_n:
            return True
    return False

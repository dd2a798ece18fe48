# The turns of an event loop: waiting for events, and for all of its connections the start, the deadlines, waiting for
# memory, and draining.

from libc.errno cimport EINTR
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.budget cimport share_room
from rioecho._core.fdio cimport deadline_after, fd_ready, milliseconds_until
from rioecho._core.poller cimport READY_MAX, poller_add, poller_broken, poller_remove, poller_wait, ready_t
from rioecho._core.posix cimport POLLIN, read, rio_assert, rio_bool_get, rio_monotonic_ns, rio_rare, rio_wait_ns
from rioecho._server.connection cimport conn_close, conn_header, conn_wait_for, conn_write
from rioecho._server.echo cimport (
    CHUNK,
    CHUNK_MIN,
    DRAINING,
    ECHOING,
    HALTED,
    LOOKS,
    MEMORY_LOOK,
    OPENING,
    patience,
    peer_took,
)
from rioecho._server.kept cimport conn_is_silent, conn_ready, conn_room, loop_favour, loop_gauge, loop_spares_free
from rioecho._server.loop cimport (
    conn_append,
    conn_look_later,
    conn_progress,
    conn_t,
    kept_t,
    loop_detach,
    loop_t,
    reason,
    BROKEN,
    CUT_OFF,
    IDLE,
    STOPPED,
)
from rioecho._server.receiving cimport conn_read


cdef inline void loop_begin(loop_t *l, conn_t *c) noexcept nogil:
    """Start serving a connection."""
    cdef int err
    conn_append(l, c)
    l.active += 1
    c.phase = OPENING
    c.looks = 0
    c.deadline = INT64_MAX if l.idle < 0 else l.now + l.pause
    c.events = POLLIN
    err = poller_add(&l.poller, c.fd, POLLIN, c)
    if err:
        conn_close(l, c, BROKEN, err)
    elif rio_rare(l.handler != NULL and l.handler.has_objects and not l.proxied):
        l.handler.make(l, c)


cdef inline bint loop_take_inbox(loop_t *l) noexcept nogil:
    """Start serving the connections in the inbox; report whether there were any.

    No pointer is cut, because the pipe contains nothing else.
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
    """Start draining."""
    l.stopping = True
    l.drained = deadline_after(l.drain)
    l.patience = patience(l.drain)
    poller_remove(&l.poller, l.stop_fd)


cdef inline bint loop_drain_some(loop_t *l) noexcept nogil:
    """Read once from each connection that may have more input; report whether one is left that may, and need not wait.

    A connection drains once something has come from it, and the others when the patience is over.
    """
    cdef conn_t *c = l.all.next
    cdef conn_t *following
    cdef bint more = False
    while c != &l.all:
        following = c.next
        if c.phase == OPENING and l.now >= l.patience:
            if conn_header(c) == NULL or conn_header(c).done:
                c.phase = DRAINING
            elif fd_ready(c.fd, POLLIN):   # the header, and with it the rest, may have arrived long ago
                conn_read(l, c)
                more = True
                c = following
                continue
            else:
                conn_close(l, c, STOPPED, 0)
                c = following
                continue
        elif c.phase == ECHOING and (l.now >= l.patience or not conn_is_silent(c)):
            c.phase = DRAINING
        if c.phase == DRAINING and conn_ready(c) == 0:
            conn_read(l, c)
        c = following
    c = l.all.next
    while c != &l.all and not more:
        more = c.phase == DRAINING and conn_ready(c) == 0 and c.events != HALTED
        c = c.next
    return more


cdef inline void loop_expire(loop_t *l) noexcept nogil:
    """Check the connections whose deadline has passed, and close those whose timeout has expired."""
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
        # This thread itself may have been delayed (suspended, or short of CPU time): check for an unhandled event.
        if fd_ready(c.fd, c.events):
            if conn_ready(c):
                conn_write(l, c)
            else:
                conn_read(l, c)
            # If it is no longer first in the list it may be closed, and its memory must not be used.
            if l.all.next != c or l.now < c.deadline:
                continue
        conn_close(l, c, IDLE, 0)


cdef inline void loop_look(loop_t *l) noexcept nogil:
    """Do the periodic work: close the connections that have lingered long enough, resume as many waiting ones as there
    is memory for, free the spare pages, and repeat the reports that failed.
    """
    cdef kept_t *k = l.waiting.next
    cdef kept_t *following
    cdef size_t room = share_room(&l.memory)
    cdef bint resumed = False
    l.look = INT64_MAX
    loop_spares_free(l)
    loop_gauge(l)
    while l.lingering.next != &l.lingering and l.now >= l.lingering.next.deadline:
        conn_close(l, l.lingering.next, <reason>l.lingering.next.why, 0)
    if l.lingering.next != &l.lingering:
        l.look = min(l.look, l.lingering.next.deadline)
    while k != &l.waiting:
        following = k.next
        if loop_favour(l, k.owner, k.b.cap) or (k.owner == l.favoured and conn_room(l, k.owner)):
            resumed = True
            conn_wait_for(l, k.owner, POLLIN)
        elif room >= CHUNK_MIN:
            room -= min(room, <size_t>CHUNK)
            resumed = True
            conn_wait_for(l, k.owner, POLLIN)   # if another thread takes the memory first, it waits again
        k = following
    # While the server stops, no event may come of one that was resumed: all of its input may have been read.
    if l.waiting.next != &l.waiting or (resumed and l.stopping):
        l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)
    if l.gone == NULL:
        l.gone = l.again
        l.again = NULL
    elif l.again != NULL:
        l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)


cdef inline int64_t loop_deadline(const loop_t *l) noexcept nogil:
    if l.all.next == &l.all:
        return l.look
    if l.stopping:
        return min(l.patience if l.now < l.patience else l.drained, l.look)
    return min(l.all.next.deadline, l.look)


cdef inline bint loop_turns(loop_t *l, int *err) noexcept nogil:
    """Run until there is something to report or an error (returns True), or the last connection is closed (False)."""
    cdef ready_t events[READY_MAX]
    cdef conn_t *c
    cdef int i, n
    # A report may have interrupted draining: some connections may have unread input.
    cdef bint more = l.stopping, stop, arrivals, posts
    cdef char woken[64]
    while l.active or not l.inbox_ended:
        posts = rio_rare(l.handler != NULL) and rio_bool_get(&l.handler.posts)
        n = poller_wait(
            &l.poller, events, 0 if more or posts or l.lengths_n else milliseconds_until(loop_deadline(l)), err
        )
        stop = arrivals = False
        if rio_rare(n < 0):
            if err[0] != EINTR:
                if poller_broken(&l.poller):
                    return True
                rio_wait_ns(-1, MEMORY_LOOK * 1_000_000)
                stop = not l.stopping and fd_ready(l.stop_fd, POLLIN)
                arrivals = not l.inbox_ended
            err[0] = 0
        l.now = rio_monotonic_ns()
        for i in range(n):
            c = <conn_t *>events[i].data
            if rio_rare(<size_t>events[i].data - <size_t>l < sizeof(loop_t)):   # a part of the loop, no connection
                if events[i].data == &l.inbox:
                    arrivals = True
                elif events[i].data == &l.stop_fd:
                    stop = True
                else:
                    rio_assert(events[i].data == &l.wake)
                    read(l.wake, woken, sizeof(woken))   # before the look at what was posted
            elif conn_ready(c):
                conn_write(l, c)
            else:
                conn_read(l, c)
        # After the others: a new connection could get the memory of a closed one, and with it the closed one's events.
        if rio_rare(stop):
            loop_drain(l)
        if rio_rare(arrivals):
            loop_take_inbox(l)
        if rio_rare(l.handler != NULL) and rio_bool_get(&l.handler.posts):
            l.handler.take_posts(l)
        more = l.stopping and loop_drain_some(l)
        loop_expire(l)
        if rio_rare(l.now >= l.look):
            loop_look(l)
        loop_detach(l)
        if l.gone != NULL or l.lengths_n or l.opened_n:
            return True
    return False

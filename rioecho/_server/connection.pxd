# The steps of one connection of an event loop: its end, what it waits for, and sending. Its state is in
# _server/loop.pxd, receiving in _server/receiving.pxd, the turns of the loop in _server/turns.pxd.
#
# Every step ends with the connection waiting for its next event or closed. The memory of a closed connection may have
# been freed: the caller must not use it again.

from cpython.mem cimport PyMem_RawFree
from libc.errno cimport ECONNRESET, EINTR, EPIPE
from libc.stdint cimport uint64_t
from libc.string cimport memchr

from rioecho._core.buffer cimport buffer_consume, buffer_start
from rioecho._core.fdio cimport FD_SOCKET, rio_fd, would_block
from rioecho._core.poller cimport poller_add, poller_modify, poller_remove
from rioecho._core.posix cimport (
    O_RDWR,
    POLLIN,
    POLLOUT,
    SHUT_WR,
    close,
    rio_assert,
    rio_atomic_add,
    rio_bool_get,
    rio_rare,
    shutdown,
)
from rioecho._server.bulk cimport bulk_end
from rioecho._server.echo cimport ECHOING, HALTED, LINGERING, OPENING, echo_send, peer_took
from rioecho._server.hosts cimport hosts_release
from rioecho._server.kept cimport conn_keep_nothing, conn_ready, conn_shrink, conn_wait_for_memory, conn_wait_no_more
from rioecho._server.loop cimport (
    LENGTHS_MAX,
    conn_check,
    conn_progress,
    conn_linger_until,
    conn_t,
    conn_unlink,
    loop_attach,
    loop_t,
    outlet_lock,
    outlet_unlock,
    reason,
    waits_for_memory,
    OPEN,
    ENDED,
    STOPPED,
    BROKEN,
    NO_HEADER,
    CROWDED,
)
from rioecho._server.proxy cimport proxy_is_begun, proxy_t


cdef inline proxy_t *conn_header(const conn_t *c) noexcept nogil:
    """Return its PROXY header, or NULL."""
    return NULL if c.extras == NULL else c.extras.header


cdef inline void conn_drop_header(conn_t *c) noexcept nogil:
    if c.extras != NULL:
        PyMem_RawFree(c.extras.header)
        c.extras.header = NULL


cdef inline void conn_free(conn_t *c) noexcept nogil:
    """Free the memory of a closed connection."""
    conn_drop_header(c)
    PyMem_RawFree(c.extras)
    PyMem_RawFree(c)


cdef inline bint conn_is_in_header(const conn_t *c) noexcept nogil:
    """Report whether a part of its PROXY header has arrived, and not all of it."""
    cdef const proxy_t *header = conn_header(c)
    return header != NULL and proxy_is_begun(header)


cdef inline void conn_close(loop_t *l, conn_t *c, reason why, int err) noexcept nogil:
    cdef int fd = c.fd
    conn_check(l, c)
    rio_assert(l.active > 0)
    if c.events != HALTED:
        poller_remove(&l.poller, fd)
    bulk_end(l, c)
    if rio_rare(c.extras != NULL and c.extras.outlet != NULL):
        outlet_lock(c.extras.outlet)   # nobody duplicates the descriptor now or later
        c.fd = -1
        outlet_unlock(c.extras.outlet)
    else:
        c.fd = -1
    close(fd)   # without the lock: with SO_LINGER it may take seconds
    if rio_rare(c.extras != NULL and c.extras.host != NULL):
        hosts_release(l.hosts, c.extras.host)
        c.extras.host = NULL
    conn_keep_nothing(l, c)
    conn_unlink(c)
    l.active -= 1
    if rio_rare(why >= BROKEN):
        if why == BROKEN and conn_is_in_header(c):
            why = NO_HEADER
        if why == CROWDED:
            rio_atomic_add(&l.counts.refused, 1)
        elif why == NO_HEADER or c.phase != OPENING or (err != ECONNRESET and err != EPIPE):
            rio_atomic_add(&l.counts.errors, 1)   # but not a reset before the first byte: a load balancer's check
    # Count after the close, so that a caller that sees the count finds the descriptor free.
    rio_atomic_add(&l.counts.closed, 1)
    if c.peer != NULL or rio_bool_get(&l.report_closings):
        c.why = why
        c.err = err
        c.next = l.gone
        l.gone = c
    else:
        conn_free(c)


cdef inline void conn_wait_for_other(loop_t *l, conn_t *c, short events) noexcept nogil:
    """Change the events that a connection waits for."""
    cdef int err
    if c.events == HALTED:
        err = poller_add(&l.poller, c.fd, events, c)
    elif events == HALTED:
        err = poller_remove(&l.poller, c.fd)
    else:
        err = poller_modify(&l.poller, c.fd, events, c)
    if rio_rare(err):
        conn_close(l, c, BROKEN, err)
        return
    if not waits_for_memory(events):
        conn_wait_no_more(c)
    elif not waits_for_memory(c.events):
        conn_wait_for_memory(l, c)
    c.events = events


cdef inline void conn_wait_for(loop_t *l, conn_t *c, short events) noexcept nogil:
    """Wait for input, for room in the socket buffer, or (PAUSED, HALTED) for memory.

    A reset is reported during each, but not with HALTED: the hang-up of a peer would be reported again and again.
    """
    if rio_rare(c.events != events):
        conn_wait_for_other(l, c, events)


cdef inline void conn_linger(loop_t *l, conn_t *c) noexcept nogil:
    """Read and discard what the peer still sends, because closing with unread input would send a reset, which discards
    data in flight to the peer.
    """
    rio_assert(c.kept == NULL and c.why != OPEN)
    if rio_rare(shutdown(c.fd, SHUT_WR) < 0):
        conn_close(l, c, <reason>c.why, 0)   # disconnected
        return
    c.phase = LINGERING
    c.ended = False
    if not l.stopping:
        conn_linger_until(l, c)
    if rio_rare(l.handler != NULL and l.handler.has_objects):
        loop_attach(l)
        l.handler.lost(l.handler.self, c)
    conn_wait_for(l, c, POLLIN)


cdef inline void conn_next_unusual(loop_t *l, conn_t *c) noexcept nogil:
    """Do the rest of conn_next(): wait to send, or after the end of the input linger or close."""
    if conn_ready(c):
        # What the peer has taken since the last look is progress, also if no byte could be sent now.
        if l.idle >= 0 and peer_took(c.fd, &c.unacknowledged) and c.events == POLLOUT:
            conn_progress(l, c)
        conn_wait_for(l, c, POLLOUT)
        return
    if c.phase == ECHOING:
        conn_close(l, c, ENDED, 0)
        return
    if c.why == OPEN:
        c.why = STOPPED
    conn_linger(l, c)


cdef inline void conn_next(loop_t *l, conn_t *c) noexcept nogil:
    """Choose the next event after a read or a write: wait to send, wait for input, linger, or close."""
    if rio_rare(conn_ready(c) or c.ended):   # apart, so that the compiler inlines the rest everywhere
        conn_next_unusual(l, c)
        return
    conn_wait_for(l, c, POLLIN)


cdef inline rio_fd conn_socket(const conn_t *c) noexcept nogil:
    cdef rio_fd f
    f.fd = c.fd
    f.kind = FD_SOCKET
    f.access = O_RDWR
    return f


cdef inline ssize_t conn_try_send(
    loop_t *l, conn_t *c, const char *first, size_t n, const char *second, size_t m, int *err
) noexcept nogil:
    """Send two pieces of memory without blocking. Returns the number of bytes sent, or -1 with the errno."""
    cdef rio_fd f = conn_socket(c)
    cdef ssize_t put = echo_send(&f, first, n, second, m, l.counts, err)
    if put > 0:
        c.bytes_out += put
        if rio_rare(c.extras != NULL and c.extras.outlet != NULL):
            rio_atomic_add(&c.extras.outlet.unsent, <uint64_t>0 - <uint64_t>put)
        conn_progress(l, c)
    return put


cdef inline ssize_t conn_send(
    loop_t *l, conn_t *c, const char *first, size_t n, const char *second, size_t m
) noexcept nogil:
    """Send two pieces of memory without blocking.

    Returns the number of bytes sent, 0 if the write would block, or -1 if the connection failed and was closed.
    """
    cdef int err = 0
    cdef ssize_t put = conn_try_send(l, c, first, n, second, m, &err)
    if put < 0 and (err == EINTR or would_block(err)):
        put = 0
    elif rio_rare(put < 0):
        conn_close(l, c, BROKEN, err)
    return put


cdef inline void conn_write(loop_t *l, conn_t *c) noexcept nogil:
    """Send what is ready until the write would block."""
    cdef ssize_t n = 0
    conn_check(l, c)
    if conn_ready(c):
        n = conn_send(l, c, buffer_start(&c.kept.b), c.kept.ready, NULL, 0)
        if n < 0:
            return
        buffer_consume(&c.kept.b, n)
        c.kept.ready -= n
    if conn_ready(c) == 0:
        conn_shrink(l, c)
    conn_next(l, c)


cdef inline void conn_report(loop_t *l, size_t length) noexcept nogil:
    """Record for the report that ``length`` bytes are sent as one line (raw: as one read)."""
    rio_assert(l.lengths_n < LENGTHS_MAX)
    l.lengths[l.lengths_n] = length
    l.lengths_n += 1


cdef inline void conn_report_lines(loop_t *l, size_t held, size_t n) noexcept nogil:
    """Record the lines in the first n bytes of the area, the first of which has ``held`` bytes in the buffer."""
    cdef const char *start = l.area
    cdef const char *end = l.area + n
    cdef const char *newline
    while start < end:
        newline = <const char *>memchr(start, c'\n', end - start)
        newline = end if newline == NULL else newline + 1
        conn_report(l, held + <size_t>(newline - start))
        held = 0
        start = newline

# The steps of one connection of an event loop. Its state is in _server/loop.pxd, the turns of the loop in
# _server/turns.pxd.
#
# Every step ends with the connection waiting for its next event or closed. The memory of a closed connection may have
# been freed: the caller must not use it again.

from cpython.mem cimport PyMem_RawFree
from libc.errno cimport ECONNRESET, EINTR, ENOMEM, EPIPE
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memchr, memmove

from rioecho._core.budget cimport share_favour
from rioecho._core.buffer cimport buffer_consume, buffer_start
from rioecho._core.fdio cimport FD_SOCKET, fd_read, rio_fd, would_block
from rioecho._core.poller cimport poller_modify, poller_remove
from rioecho._core.posix cimport (
    O_RDWR,
    POLLIN,
    POLLOUT,
    RIO_SOURCE_UNKNOWN,
    SHUT_WR,
    close,
    rio_assert,
    rio_atomic_add,
    rio_bool_get,
    rio_rare,
    rio_socket_error,
    rio_source,
    rio_source_of_peer,
    shutdown,
)
from rioecho._server.bulk cimport bulk_begin, bulk_drop, bulk_end, bulk_is_due, bulk_keep, bulk_receive, bulk_send
from rioecho._server.echo cimport (
    CHUNK,
    CHUNK_MIN,
    DRAINING,
    ECHOING,
    LINGERING,
    OPENING,
    PAUSED,
    echo_due,
    echo_send,
    peer_took,
)
from rioecho._server.hosts cimport CLAIM_GRANTED, CLAIM_REFUSED, claim, hosts_claim, hosts_release
from rioecho._server.kept cimport (
    conn_drop_rest,
    conn_held,
    conn_is_silent,
    conn_keep,
    conn_keep_nothing,
    conn_ready,
    conn_rest,
    conn_room,
    conn_shrink,
    conn_wait_for_memory,
    conn_wait_no_more,
)
from rioecho._server.loop cimport (
    CHUNK_REPORTED,
    LENGTHS_MAX,
    OPENED_MAX,
    REPORTED_MAX,
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
    OPEN,
    ENDED,
    IDLE,
    STOPPED,
    CUT_OFF,
    BROKEN,
    NO_HEADER,
    CROWDED,
)
from rioecho._server.proxy cimport PROXY_DONE, PROXY_WRONG, proxy_answer, proxy_feed, proxy_is_begun, proxy_t


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
    conn_check(l, c)
    rio_assert(l.active > 0)
    poller_remove(&l.poller, c.fd)
    bulk_end(l, c)
    if rio_rare(c.extras != NULL and c.extras.outlet != NULL):
        outlet_lock(c.extras.outlet)
        close(c.fd)
        c.fd = -1
        outlet_unlock(c.extras.outlet)
    else:
        close(c.fd)
        c.fd = -1
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
    cdef int err = poller_modify(&l.poller, c.fd, events, c)
    if rio_rare(err):
        conn_close(l, c, BROKEN, err)
        return
    if events == PAUSED:
        conn_wait_for_memory(l, c)
    elif c.events == PAUSED:
        conn_wait_no_more(c)
    c.events = events


cdef inline void conn_wait_for(loop_t *l, conn_t *c, short events) noexcept nogil:
    """Wait for input, for room in the socket buffer, or (PAUSED) for memory; a reset is reported during each."""
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


cdef inline void conn_echo(loop_t *l, conn_t *c, size_t before, size_t n) noexcept nogil:
    """Echo what is due of the n bytes in the area, after ``before`` bytes in the buffer; keep the rest."""
    cdef uint64_t lines = 0
    cdef size_t due = echo_due(l.area, before, n, l.max_line, False, &lines)
    cdef ssize_t put = 0
    cdef size_t from_kept
    if lines:
        rio_atomic_add(&l.counts.lines, lines)
    if due:
        if l.lengths != NULL:
            if l.max_line:
                conn_report_lines(l, before, due - before)
            else:
                conn_report(l, n)
        if before:
            put = conn_send(l, c, buffer_start(&c.kept.b), before, l.area, due - before)
        else:
            put = conn_send(l, c, l.area, due, NULL, 0)
        if put < 0:
            return
    from_kept = min(<size_t>put, before)
    if from_kept:
        buffer_consume(&c.kept.b, from_kept)
    if put - from_kept < n and rio_rare(conn_keep(l, c, l.area + put - from_kept, n - put + from_kept) < 0):
        conn_close(l, c, BROKEN, ENOMEM)
        return
    if due and c.kept != NULL:
        c.kept.ready = due - put
        if c.kept.ready == 0:
            conn_shrink(l, c)
    conn_next(l, c)


cdef inline bint conn_echo_bulk(loop_t *l, conn_t *c) noexcept nogil:
    """Echo what has arrived by splice(2). Reports whether it did; otherwise a read is to be made."""
    cdef int err = 0
    cdef ssize_t n = bulk_receive(l, c, &err)
    cdef size_t put
    if n <= 0:
        if n == 0 or err == EINTR or would_block(err):
            return False
        conn_close(l, c, BROKEN, err)
        return True
    rio_atomic_add(&l.counts.bytes_in, n)
    rio_atomic_add(&l.counts.bytes_out, n)   # before they are sent, as in echo_send()
    put = bulk_send(l, c, n, &err)
    c.bytes_out += put
    conn_progress(l, c)
    if put < <size_t>n:
        rio_atomic_add(&l.counts.bytes_out, <uint64_t>put - <uint64_t>n)
        if err != EINTR and not would_block(err):
            bulk_drop(l, n - put)
            conn_close(l, c, BROKEN, err)
            return True
        if bulk_keep(l, c, n - put) < 0:
            bulk_drop(l, n - put)
            conn_close(l, c, BROKEN, ENOMEM)
            return True
        c.kept.ready = n - put
    conn_next(l, c)
    return True


cdef inline void conn_finish(loop_t *l, conn_t *c, bint eof) noexcept nogil:
    """End the input: send the beginning of a line back (a handler gets it, but only if it was ended by EOF, and not by
    the stop: a part of a command is none), then close.
    """
    c.ended = True
    if rio_rare(l.handler != NULL):
        if eof and conn_rest(c):
            l.handler.handle_last(l, c)
            return
        conn_drop_rest(c)
    elif c.kept != NULL:
        c.kept.ready = conn_held(c)
        if l.lengths != NULL:
            conn_report(l, c.kept.ready)
    conn_write(l, c)


cdef inline bint conn_is_ending(const conn_t *c) noexcept nogil:
    """Report, of a connection that is readable, whether its peer or the server has ended the input."""
    return c.phase == DRAINING or c.events == PAUSED   # PAUSED: only EOF or an error can have ended that


cdef inline void conn_pause(loop_t *l, conn_t *c) noexcept nogil:
    """Wait for memory, with a connection that holds the beginning of a line and may not read more of it."""
    cdef int err
    if not conn_is_ending(c):
        if l.favoured == NULL and share_favour(&l.memory, c.kept.b.cap):
            l.favoured = c   # it reads in the next turn
        else:
            conn_wait_for(l, c, PAUSED)
        return
    err = rio_socket_error(c.fd)
    if err:
        conn_close(l, c, BROKEN, err)
        return
    # Every byte received is echoed before the close, even without a newline. Send the buffer now rather than wait for
    # memory: the connections that have it may be waiting for more themselves.
    c.kept.ready = conn_held(c)
    if l.lengths != NULL:
        conn_report(l, c.kept.ready)
    conn_write(l, c)


cdef inline ssize_t conn_open(loop_t *l, conn_t *c, size_t n) noexcept nogil:
    """Take the PROXY header, if one is expected, from the n bytes in the area.

    Returns the number of bytes left in the area; -1 if there are none, or if the connection was closed.
    """
    cdef size_t used = 0
    cdef proxy_answer answer
    cdef claim granted
    cdef rio_source source
    cdef proxy_t *header = conn_header(c)
    if header != NULL and not header.done:
        answer = proxy_feed(header, l.area, n, &used)
        if answer == PROXY_WRONG:
            conn_close(l, c, NO_HEADER, 0)
        if answer != PROXY_DONE:
            return -1
        if l.hosts != NULL:
            source = header.source
            if source.kind == RIO_SOURCE_UNKNOWN:
                rio_source_of_peer(c.fd, &source)
            granted = hosts_claim(l.hosts, &source, &c.extras.host)
            if granted != CLAIM_GRANTED:
                if granted == CLAIM_REFUSED:
                    conn_close(l, c, CROWDED, 0)
                else:
                    conn_close(l, c, BROKEN, ENOMEM)
                return -1
        n -= used
        if n:
            memmove(l.area, l.area + used, n)
        if rio_rare(l.handler != NULL and l.handler.has_objects):
            l.handler.make(l, c)
            if c.fd < 0 or c.ended:   # its memory is kept until the loop reports its end
                return -1
        if n == 0:
            return -1
    c.phase = ECHOING
    if c.peer == NULL:
        conn_drop_header(c)
    elif l.opened_n < OPENED_MAX:   # otherwise it is reported when it is closed
        l.opened[l.opened_n] = c
        l.opened_n += 1
    return n


cdef inline void conn_read(loop_t *l, conn_t *c) noexcept nogil:
    """Receive once, and echo what was received."""
    cdef rio_fd f = conn_socket(c)
    cdef int err = 0
    cdef size_t before = 0, room = l.chunk, most = SIZE_MAX
    cdef ssize_t n
    conn_check(l, c)
    # A client that sends only newlines would otherwise cause tens of thousands of calls of Python before the turn of
    # other connections. While lines wait for their report, less is read at a time.
    if rio_rare(l.lengths_n > REPORTED_MAX):
        if l.lengths_n >= LENGTHS_MAX - CHUNK:
            conn_progress(l, c)   # the wait is not the connection's
            return
        most = CHUNK_REPORTED
    if c.kept != NULL:
        before = conn_held(c)
        room = conn_room(l, c)
        if rio_rare(room == 0):
            if l.handler == NULL or not conn_is_ending(c):
                conn_pause(l, c)
                return
            room = CHUNK_MIN   # a handler gets no part of a line, and there is not much more to come
    elif rio_rare(l.bulk != 0) and bulk_is_due(l, c) and conn_echo_bulk(l, c):
        return
    n = fd_read(&f, l.area, min(room, most), &err)
    if n > 0:
        if rio_rare(c.phase >= LINGERING):
            if c.phase == LINGERING:   # input is discarded
                return
            n = conn_open(l, c, n)
            if n < 0:
                return
        rio_atomic_add(&l.counts.bytes_in, n)
        conn_progress(l, c)
        if rio_rare(l.handler != NULL):
            l.handler.handle(l, c, n)
            return
        if rio_rare(n == CHUNK) and l.bulk != 0:
            bulk_begin(l, c)
        conn_echo(l, c, before, n)
        return
    if n < 0 and err == EINTR:
        return
    if rio_rare(n < 0 and not would_block(err)):
        if c.phase != ECHOING and c.why <= STOPPED and conn_is_silent(c):
            c.phase = OPENING   # nothing has come from the peer, though the server is stopping
        conn_close(l, c, BROKEN, err)
        return
    if n < 0 and c.phase != DRAINING:
        return
    # EOF, or while draining the end of the bytes that have arrived.
    if rio_rare(c.phase >= LINGERING):
        conn_close(l, c, <reason>c.why if c.phase == LINGERING else NO_HEADER if conn_is_in_header(c) else ENDED, 0)
        return
    conn_finish(l, c, n == 0)

# Receiving of one connection of an event loop, and the echo: the PROXY header, whole lines, bulk, and the end of the
# input. What follows a read is a step of _server/connection.pxd.

from libc.errno cimport EINTR, ENOMEM
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memmove

from rioecho._core.buffer cimport buffer_consume, buffer_start
from rioecho._core.fdio cimport fd_peek, fd_read, rio_fd, would_block
from rioecho._core.posix cimport (
    POLLIN,
    RIO_SOURCE_UNKNOWN,
    rio_atomic_add,
    rio_bool_get,
    rio_rare,
    rio_socket_error,
    rio_source,
    rio_source_of_peer,
)
from rioecho._server.bulk cimport (
    bulk_begin,
    bulk_drop,
    bulk_end,
    bulk_is_due,
    bulk_is_refused,
    bulk_keep,
    bulk_receive,
    bulk_send,
)
from rioecho._server.connection cimport (
    conn_close,
    conn_drop_header,
    conn_header,
    conn_is_in_header,
    conn_next,
    conn_report,
    conn_report_lines,
    conn_send,
    conn_socket,
    conn_wait_for,
    conn_write,
)
from rioecho._server.echo cimport CHUNK, DRAINING, ECHOING, HALTED, LINGERING, OPENING, PAUSED, echo_due
from rioecho._server.hosts cimport CLAIM_GRANTED, CLAIM_REFUSED, claim, hosts_claim
from rioecho._server.kept cimport (
    conn_drop_rest,
    conn_held,
    conn_is_silent,
    conn_keep,
    conn_rest,
    conn_room,
    conn_shrink,
    loop_favour,
)
from rioecho._server.loop cimport (
    CHUNK_REPORTED,
    LENGTHS_MAX,
    OPENED_MAX,
    REPORTED_MAX,
    conn_check,
    conn_progress,
    conn_t,
    loop_t,
    reason,
    waits_for_memory,
    ENDED,
    STOPPED,
    BROKEN,
    NO_HEADER,
    CROWDED,
)
from rioecho._server.proxy cimport PROXY_DONE, PROXY_WRONG, proxy_answer, proxy_feed, proxy_t


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
        if rio_rare(before != 0):
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
    if due and rio_rare(c.kept != NULL):
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
        if bulk_is_refused(err):
            bulk_end(l, c)   # the buffer is sent without it
        elif err != EINTR and not would_block(err):
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
        if not eof:
            conn_drop_rest(c)
        if conn_rest(c) or rio_bool_get(&l.handler.posts):   # which may be of this connection
            l.handler.handle_last(l, c)
            return
    elif c.kept != NULL:
        c.kept.ready = conn_held(c)
        if l.lengths != NULL:
            conn_report(l, c.kept.ready)
    conn_write(l, c)


cdef inline bint conn_is_ending(const conn_t *c) noexcept nogil:
    """Report, of a connection that is readable, whether its peer or the server has ended the input."""
    return c.phase == DRAINING or waits_for_memory(c.events)   # only EOF or an error can have ended that


cdef inline void conn_pause(loop_t *l, conn_t *c) noexcept nogil:
    """Wait for memory, with a connection that holds the beginning of a line and may not read more of it."""
    cdef bint ending = conn_is_ending(c)
    cdef int err
    if ending:
        err = rio_socket_error(c.fd)
        if err:
            conn_close(l, c, BROKEN, err)
            return
        if l.handler == NULL:
            # Every byte received is echoed before the close, even without a newline. Send the buffer now rather than
            # wait for memory: the connections that have it may be waiting for more themselves.
            c.kept.ready = conn_held(c)
            if l.lengths != NULL:
                conn_report(l, c.kept.ready)
            conn_write(l, c)
            return
        # A handler gets no part of a line, so the rest is waited for: some has arrived.
    if ending and c == l.favoured:
        # Not even the reserve has room for the line. Without it, there is room for those of others.
        if c.phase == DRAINING:
            conn_finish(l, c, False)
        else:
            conn_close(l, c, BROKEN, ENOMEM)
    elif loop_favour(l, c, 0 if ending else c.kept.b.cap):
        conn_wait_for(l, c, POLLIN)   # it reads in the next turn
    else:
        conn_wait_for(l, c, HALTED if ending else PAUSED)


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
    if rio_rare(c.kept != NULL):
        before = conn_held(c)
        room = conn_room(l, c)
    elif rio_rare(l.bulk != 0) and bulk_is_due(l, c) and conn_echo_bulk(l, c):
        return
    if rio_rare(room == 0):
        # The end of the input needs no memory. Without a handler it does not matter: what is held is sent at once then.
        n = 1 if l.handler == NULL or not conn_is_ending(c) else fd_peek(&f, l.area, 1, &err)
        if n > 0:
            conn_pause(l, c)
            return
    else:
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
        if c.phase == LINGERING or l.handler == NULL or not rio_bool_get(&l.handler.posts) or conn_is_in_header(c):
            conn_close(l, c, <reason>c.why if c.phase == LINGERING else NO_HEADER if conn_is_in_header(c) else ENDED, 0)
            return
        c.phase = ECHOING   # it has sent nothing, but something may have been written to it
    conn_finish(l, c, n == 0)

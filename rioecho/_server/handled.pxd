# The steps of a connection with a handler, and what was asked of connections outside of the calls of their handlers.
#
# An event loop that only echoes has none of this: it calls these steps through the functions of handler_t, which
# handled_steps() sets. They are compiled with the handlers (_server/handling.pyx), not with the loop, so that the
# compiler's choice of what to inline in the echo does not depend on them.

from libc.errno cimport ENOMEM

from rioecho._core.buffer cimport buffer_consume, buffer_free, buffer_held, buffer_start, rio_buffer
from rioecho._core.posix cimport rio_memrchr, rio_rare, rio_reset_at_close
from rioecho._server.connection cimport (
    conn_close,
    conn_next,
    conn_report,
    conn_report_lines,
    conn_send,
    conn_try_send,
    conn_write,
)
from rioecho._server.echo cimport DRAINING
from rioecho._server.kept cimport conn_drop_rest, conn_keep, conn_keep_ready, conn_ready, conn_rest, conn_shrink
from rioecho._server.loop cimport ABORTED, BROKEN, OPEN, OUT_KEPT, conn_t, handler_t, loop_attach, loop_t, reason


cdef inline void conn_end(loop_t *l, conn_t *c, reason why) noexcept nogil:
    """Send what is ready, half-close and linger (ABORTED: reset the connection); no more input is handled."""
    if why == ABORTED:
        rio_reset_at_close(c.fd)
        conn_close(l, c, ABORTED, 0)
        return
    conn_drop_rest(c)
    c.phase = DRAINING
    c.ended = True
    c.why = why
    conn_write(l, c)


cdef inline void conn_send_early(loop_t *l, conn_t *c) noexcept nogil:
    """Send what the handler that is being called has written so far; conn_settle() meets the error, if there is one."""
    cdef int err = 0
    cdef ssize_t put = 0
    if buffer_held(&l.out) and conn_ready(c) == 0:
        put = conn_try_send(l, c, buffer_start(&l.out), buffer_held(&l.out), NULL, 0, &err)
    if put > 0:
        buffer_consume(&l.out, put)


cdef inline void conn_settle(loop_t *l, conn_t *c, reason why, const char *rest, size_t n) noexcept nogil:
    """Send what the handler has written, keep n bytes, the beginning of a line, and go on, or close for a reason.

    ABORTED sends nothing.
    """
    cdef rio_buffer *out = &l.out
    cdef size_t written = buffer_held(out)
    cdef size_t due = 0 if rio_rare(why == ABORTED) else written
    cdef ssize_t put = 0
    if due and conn_ready(c) == 0:
        put = conn_send(l, c, buffer_start(out), due, NULL, 0)
    if put >= 0 and <size_t>put < due and rio_rare(conn_keep_ready(l, c, buffer_start(out) + put, due - put) < 0):
        conn_close(l, c, BROKEN, ENOMEM)
        put = -1
    buffer_consume(out, written)
    if out.cap > OUT_KEPT:
        buffer_free(out)
    if put < 0:
        return
    if rio_rare(why != OPEN):
        conn_end(l, c, why)
        return
    if n and rio_rare(conn_keep(l, c, rest, n) < 0):
        conn_close(l, c, BROKEN, ENOMEM)
        return
    if c.kept != NULL and c.kept.ready == 0:
        conn_shrink(l, c)
    conn_next(l, c)


cdef inline void conn_make(loop_t *l, conn_t *c) noexcept nogil:
    """Make the handler object of a connection."""
    cdef reason why
    loop_attach(l)
    why = l.handler.made(l.handler.self, c)
    if why != OPEN or buffer_held(&l.out):
        conn_settle(l, c, why, NULL, 0)


cdef inline void conn_handle(loop_t *l, conn_t *c, size_t n) noexcept nogil:
    """Give whole lines of the n bytes in the area to the handler, and with them the beginning of the first one from the
    buffer; keep the beginning of the last one.
    """
    cdef size_t before = conn_rest(c), due = n
    cdef const char *newline
    cdef const char *first = NULL
    cdef reason why
    if l.max_line:
        newline = <const char *>rio_memrchr(l.area, c'\n', n)
        due = 0 if newline == NULL else newline + 1 - l.area
    if due:
        if l.lengths != NULL:
            if l.max_line:
                conn_report_lines(l, before, due)
            else:
                conn_report(l, n)
        if before:
            first = buffer_start(&c.kept.b) + c.kept.ready
            if c == l.favoured:
                l.fulfilled = True
        loop_attach(l)
        why = l.handler.received(l.handler.self, c, first, before, l.area, due, n - due)
        conn_drop_rest(c)
    elif before + n <= l.max_line:
        why = OPEN
    else:
        loop_attach(l)
        why = l.handler.received(l.handler.self, c, NULL, 0, l.area, 0, before + n)
    conn_settle(l, c, why, l.area + due, n - due)


cdef inline void conn_handle_last(loop_t *l, conn_t *c) noexcept nogil:
    """Give the line that EOF has ended, if any, to the handler, and send what was written to the connection."""
    cdef size_t n = conn_rest(c)
    cdef const char *first = NULL
    cdef reason why
    if n:
        first = buffer_start(&c.kept.b) + c.kept.ready
        if l.lengths != NULL:
            conn_report(l, n)
    loop_attach(l)
    why = l.handler.received(l.handler.self, c, first, n, l.area, 0, 0)
    conn_drop_rest(c)
    conn_settle(l, c, why, NULL, 0)


cdef inline void loop_take_posts(loop_t *l) noexcept nogil:
    """Do what was asked of connections outside of the calls of their handlers."""
    cdef reason why = OPEN
    cdef conn_t *c
    loop_attach(l)
    c = l.handler.next_post(l.handler.self, &why)
    while c != NULL:
        conn_settle(l, c, why, NULL, 0)
        c = l.handler.next_post(l.handler.self, &why)


cdef inline void handled_steps(handler_t *h) noexcept nogil:
    """Set the functions that the loop calls for its connections."""
    h.make = conn_make
    h.handle = conn_handle
    h.handle_last = conn_handle_last
    h.take_posts = loop_take_posts

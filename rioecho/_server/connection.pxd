# The steps that one connection of an event loop takes; its state is in _server/loop.pxd, the loop's turns are in
# _server/turns.pxd.
#
# Every step ends in waiting for the next event, or in the connection being closed: then its memory may be gone, and
# the caller must not touch it again.

from cpython.mem cimport PyMem_RawFree
from libc.errno cimport EINTR, ENOMEM
from libc.stdint cimport uint64_t
from libc.string cimport memchr

from rioecho._core.budget cimport share_favour
from rioecho._core.buffer cimport buffer_consume, buffer_start
from rioecho._core.fdio cimport FD_SOCKET, fd_read, rio_fd, would_block
from rioecho._core.poller cimport poller_modify, poller_remove
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
    rio_socket_error,
    rio_unacknowledged,
    shutdown,
)
from rioecho._server.echo cimport CHUNK, DRAINING, ECHOING, LINGERING, PAUSED, echo_due, echo_send
from rioecho._server.loop cimport (
    CHUNK_REPORTED,
    LENGTHS_MAX,
    REPORTED_MAX,
    conn_check,
    conn_held,
    conn_keep,
    conn_keep_nothing,
    conn_progress,
    conn_ready,
    conn_room,
    conn_shrink,
    conn_t,
    conn_unlink,
    conn_wait_for_memory,
    conn_wait_no_more,
    loop_t,
)


cdef enum reason:
    ENDED       # the input has, and all of it has gone back
    IDLE        # no progress for the time allowed
    STOPPED     # the server was, and the connection has been seen off
    CUT_OFF     # the server was stopped, and the time to drain is over
    BROKEN      # by an error
    REASONS_N


cdef inline void conn_close(loop_t *l, conn_t *c, reason why, int err) noexcept nogil:
    conn_check(l, c)
    rio_assert(l.active > 0)
    poller_remove(&l.poller, c.fd)
    close(c.fd)
    conn_keep_nothing(l, c)
    conn_unlink(c)
    l.active -= 1
    if why == BROKEN:
        rio_atomic_add(&l.counts.errors, 1)
    # Now, and not before: a caller that sees it counted may rely on the descriptor being free.
    rio_atomic_add(&l.counts.closed, 1)
    if c.peer != NULL or rio_bool_get(&l.report_closings):
        c.why = why
        c.err = err
        c.next = l.gone
        l.gone = c
    else:
        PyMem_RawFree(c)


cdef inline void conn_wait_for(loop_t *l, conn_t *c, short events) noexcept nogil:
    """Wait for input, for room to send, or (PAUSED) for memory; the reset of the connection ends each of these."""
    cdef int err
    if c.events == events:
        return
    err = poller_modify(&l.poller, c.fd, events, c)
    if rio_rare(err):
        conn_close(l, c, BROKEN, err)
        return
    if events == PAUSED:
        conn_wait_for_memory(l, c)
    elif c.events == PAUSED:
        conn_wait_no_more(c)
    c.events = events


cdef inline void conn_next(loop_t *l, conn_t *c) noexcept nogil:
    """Having moved what could be moved: wait for more room, or for more input, or go on towards the end."""
    if conn_ready(c):
        if l.idle >= 0:
            c.unacknowledged = rio_unacknowledged(c.fd)
        conn_wait_for(l, c, POLLOUT)
        return
    if not c.ended:
        conn_wait_for(l, c, POLLIN)
        return
    if rio_rare(c.phase == ECHOING):
        conn_close(l, c, ENDED, 0)
        return
    # Closing over unread input would send a reset, which discards what is on its way to the peer.
    if rio_rare(shutdown(c.fd, SHUT_WR) < 0):
        conn_close(l, c, STOPPED, 0)   # the connection has gone
        return
    c.phase = LINGERING
    c.ended = False
    rio_assert(c.kept == NULL)
    conn_wait_for(l, c, POLLIN)


cdef inline rio_fd conn_socket(const conn_t *c) noexcept nogil:
    cdef rio_fd f
    f.fd = c.fd
    f.kind = FD_SOCKET
    f.access = O_RDWR
    return f


cdef inline ssize_t conn_send(
    loop_t *l, conn_t *c, const char *first, size_t n, const char *second, size_t m
) noexcept nogil:
    """Send two pieces of memory: how many bytes went, 0 where it would have to wait; -1, and it has been closed."""
    cdef rio_fd f = conn_socket(c)
    cdef int err = 0
    cdef ssize_t put = echo_send(&f, first, n, second, m, l.counts, &err)
    if put > 0:
        c.bytes_out += put
        conn_progress(l, c)
    elif put < 0 and (err == EINTR or would_block(err)):
        put = 0
    elif rio_rare(put < 0):
        conn_close(l, c, BROKEN, err)
    return put


cdef inline void conn_write(loop_t *l, conn_t *c) noexcept nogil:
    """Send of what is held as much as the peer takes."""
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
    """Put down that so many bytes go back as one line (raw: as they came)."""
    rio_assert(l.lengths_n < LENGTHS_MAX)
    l.lengths[l.lengths_n] = length
    l.lengths_n += 1


cdef inline void conn_report_lines(loop_t *l, size_t held, size_t n) noexcept nogil:
    """Put down the lines in the first n bytes of the area, the first of which began `held` bytes before."""
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
    """Send back what may go of the n bytes in the area, behind the beginning of a line that is held; keep the rest."""
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


cdef inline void conn_pause(loop_t *l, conn_t *c) noexcept nogil:
    """A connection that holds the beginning of a line, and has no memory for more of it: wait for some."""
    cdef int err
    if c.phase != DRAINING and c.events != PAUSED:
        if l.favoured == NULL and share_favour(&l.memory, c.kept.b.cap):
            l.favoured = c   # and reads in the next turn
        else:
            conn_wait_for(l, c, PAUSED)
        return
    # The server is to stop; or it waits already, and only the end of its input or an error can have woken it.
    err = rio_socket_error(c.fd)
    if err:
        conn_close(l, c, BROKEN, err)
        return
    # All that it sent goes back before the end, line or not. What is held does so now, for the others that have memory
    # may wait for more of it too.
    c.kept.ready = conn_held(c)
    if l.lengths != NULL:
        conn_report(l, c.kept.ready)
    conn_write(l, c)


cdef inline void conn_read(loop_t *l, conn_t *c) noexcept nogil:
    """One read, and the echo of what came."""
    cdef rio_fd f = conn_socket(c)
    cdef int err = 0
    cdef size_t before = 0, room = l.chunk
    cdef ssize_t n
    conn_check(l, c)
    if rio_rare(l.lengths_n >= LENGTHS_MAX - CHUNK):
        conn_progress(l, c)   # it is not its fault that it is not read from
        return
    if c.kept != NULL:
        before = conn_held(c)
        room = conn_room(l, c)
        if rio_rare(room == 0):
            conn_pause(l, c)
            return
    # A client that sends newlines alone would have Python called tens of thousands of times before others have their
    # turn. So where lines wait for their report, fewer come in at a time.
    if rio_rare(l.lengths_n > REPORTED_MAX):
        room = min(room, <size_t>CHUNK_REPORTED)
    n = fd_read(&f, l.area, room, &err)
    if n > 0:
        if c.phase != LINGERING:   # too late for those, which nothing acknowledges but the kernel
            rio_atomic_add(&l.counts.bytes_in, n)
            conn_progress(l, c)
            conn_echo(l, c, before, n)
        return
    if n < 0 and err == EINTR:
        return
    if rio_rare(n < 0 and not would_block(err)):
        conn_close(l, c, BROKEN, err)
        return
    if n < 0 and c.phase != DRAINING:
        return
    # The end of the input; or of what had arrived when the server was stopped.
    if rio_rare(c.phase == LINGERING):
        conn_close(l, c, STOPPED, 0)
        return
    c.ended = True
    if c.kept != NULL:
        c.kept.ready = conn_held(c)
        if l.lengths != NULL:
            conn_report(l, c.kept.ready)
    conn_write(l, c)

# One connection of an event loop: what it keeps, and the steps it takes; see _server/eventloop.pyx for the loop itself.
#
# Every step ends in waiting for the next event, or in the connection being closed: then its memory may be gone, and
# whoever called must not touch it again.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.ref cimport PyObject
from libc.errno cimport EINTR, ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr

from rioecho._core.buffer cimport (
    buffer_consume,
    buffer_free,
    buffer_held,
    buffer_init,
    buffer_put,
    buffer_reserve,
    buffer_start,
    rio_buffer,
    whole_lines,
)
from rioecho._core.counts cimport counts_t
from rioecho._server.blocking cimport CHUNK, DRAINING, ECHOING, LINGERING, peer_took
from rioecho._core.fdio cimport FD_SOCKET, fd_read, fd_write, fd_write_both, rio_fd, would_block
from rioecho._core.poller cimport poller_modify, poller_remove, poller_t
from rioecho._core.posix cimport (
    O_RDWR,
    POLLIN,
    POLLOUT,
    SHUT_WR,
    close,
    rio_bool_get,
    rio_atomic_add,
    rio_unacknowledged,
    shutdown,
)


cdef enum reason:
    ENDED       # the input has, and all of it has gone back
    IDLE        # no progress for the time allowed
    STOPPED     # the server was, and the connection has been seen off
    CUT_OFF     # the server was stopped, and the time to drain is over
    BROKEN      # by an error


cdef struct kept_t:
    rio_buffer b         # received and not yet sent back
    size_t ready         # of those, how many may go back now; the others are the beginning of a line


cdef struct conn_t:
    # Small: of an idle connection this is all there is.
    conn_t *prev         # those of the loop, in the order of their deadlines
    conn_t *next
    kept_t *kept         # NULL: nothing
    PyObject *peer       # for whoever is told of its end, or NULL
    int64_t deadline     # for the next progress, or for the next look whether there was any
    uint64_t bytes_out
    int fd
    short events         # what is waited for
    short err            # it was closed for
    unsigned char phase
    unsigned char why    # it was closed: a reason
    unsigned char ended  # the input has
    unsigned char looks  # at it, since there was progress
    int unacknowledged   # of what was sent, at the last look; see peer_took()


cdef struct loop_t:
    poller_t poller
    conn_t all           # the ends of the list of connections
    conn_t *gone         # those closed, to be told of
    char *area           # CHUNK bytes for what is received
    size_t active
    int stop_fd          # readable when it is time to stop
    int inbox            # a pipe of conn_t pointers; NULL says that no more will come, for a fork may hide its end
    bint inbox_ended
    bint stopping
    int64_t now          # at the beginning of this turn
    int64_t idle         # nanoseconds without progress, or -1
    int64_t pause        # between two looks, LOOKS of which make that time
    int64_t drain        # nanoseconds for draining and lingering
    int64_t drained      # when that time is over
    size_t max_line      # a longer line goes back in pieces; 0: raw
    counts_t *counts
    int tell_closings    # also of connections without a peer
    bint tell_lines
    size_t *lengths      # of the lines to be told of
    size_t lengths_n
    size_t lengths_cap


# ---- the list of connections


cdef inline void append(loop_t *l, conn_t *c) noexcept nogil:
    c.prev = l.all.prev
    c.next = &l.all
    c.prev.next = c
    l.all.prev = c


cdef inline void unlink(conn_t *c) noexcept nogil:
    c.prev.next = c.next
    c.next.prev = c.prev


cdef inline void look_later(loop_t *l, conn_t *c) noexcept nogil:
    """Set the next deadline. All have the same pause, so the last one set is the last in order."""
    c.deadline = l.now + l.pause
    if c.next != &l.all:
        unlink(c)
        append(l, c)


cdef inline void progress(loop_t *l, conn_t *c) noexcept nogil:
    """Give it all of its time again."""
    if l.idle < 0 or c.phase != ECHOING:
        return
    c.looks = 0
    look_later(l, c)


# ---- what a connection keeps


cdef inline size_t ready(const conn_t *c) noexcept nogil:
    """How many bytes may go back and have not."""
    return 0 if c.kept == NULL else c.kept.ready


cdef inline size_t held(const conn_t *c) noexcept nogil:
    """How many bytes are kept, those that may go back included."""
    return 0 if c.kept == NULL else buffer_held(&c.kept.b)


cdef inline void keep_nothing(conn_t *c) noexcept nogil:
    if c.kept != NULL:
        buffer_free(&c.kept.b)
        PyMem_RawFree(c.kept)
        c.kept = NULL


cdef inline int keep(conn_t *c, const char *data, size_t n) noexcept nogil:
    """Put n bytes behind what is kept: 0, or -1: no memory."""
    if c.kept == NULL:
        c.kept = <kept_t *>PyMem_RawMalloc(sizeof(kept_t))
        if c.kept == NULL:
            return -1
        c.kept.ready = 0
        buffer_init(&c.kept.b, 0)
    if buffer_reserve(&c.kept.b, buffer_held(&c.kept.b) + n) < 0:
        return -1
    buffer_put(&c.kept.b, data, n)
    return 0


cdef inline void keep_less(conn_t *c) noexcept nogil:
    """What is left is nothing, or the beginning of a line: let it not hold the memory of what was sent."""
    cdef size_t n = held(c)
    cdef rio_buffer small
    if n == 0:
        keep_nothing(c)
    elif c.kept.b.cap > CHUNK and n < c.kept.b.cap // 4:
        buffer_init(&small, 0)
        if buffer_reserve(&small, n) < 0:
            return
        buffer_put(&small, buffer_start(&c.kept.b), n)
        buffer_free(&c.kept.b)
        c.kept.b = small


# ---- one connection


cdef inline void conn_close(loop_t *l, conn_t *c, reason why, int err) noexcept nogil:
    poller_remove(&l.poller, c.fd)
    close(c.fd)
    keep_nothing(c)
    unlink(c)
    l.active -= 1
    if why == BROKEN:
        rio_atomic_add(&l.counts.errors, 1)
    # Now, and not before: who sees it counted may rely on the descriptor being free.
    rio_atomic_add(&l.counts.closed, 1)
    if c.peer != NULL or rio_bool_get(&l.tell_closings):
        c.why = why
        c.err = err
        c.next = l.gone
        l.gone = c
    else:
        PyMem_RawFree(c)


cdef inline void wait_for(loop_t *l, conn_t *c, short events) noexcept nogil:
    cdef int err
    if c.events == events:
        return
    err = poller_modify(&l.poller, c.fd, events, c)
    if err:
        conn_close(l, c, BROKEN, err)
        return
    c.events = events


cdef inline void next_step(loop_t *l, conn_t *c) noexcept nogil:
    """Having moved what could be moved: wait for more room, or for more input, or go on towards the end."""
    if ready(c):
        if l.idle >= 0:
            c.unacknowledged = rio_unacknowledged(c.fd)
        wait_for(l, c, POLLOUT)
        return
    if not c.ended:
        wait_for(l, c, POLLIN)
        return
    if c.phase == ECHOING:
        conn_close(l, c, ENDED, 0)
        return
    # Closing over unread input would send a reset, which discards what is on its way to the peer.
    if shutdown(c.fd, SHUT_WR) < 0:
        conn_close(l, c, STOPPED, 0)   # the connection has gone
        return
    c.phase = LINGERING
    c.ended = False
    keep_nothing(c)
    wait_for(l, c, POLLIN)


cdef inline rio_fd socket_of(const conn_t *c) noexcept nogil:
    cdef rio_fd f
    f.fd = c.fd
    f.kind = FD_SOCKET
    f.access = O_RDWR
    return f


cdef inline ssize_t conn_send(
    loop_t *l, conn_t *c, const char *first, size_t n, const char *second, size_t m
) noexcept nogil:
    """Send two pieces of memory: how many bytes went, 0 where it would have to wait; -1, and it has been closed."""
    cdef rio_fd f = socket_of(c)
    cdef int err = 0
    cdef ssize_t put
    # Counted before it goes: who has it back will find it counted.
    rio_atomic_add(&l.counts.bytes_out, n + m)
    if m == 0:
        put = fd_write(&f, first, n, &err)
    else:
        put = fd_write_both(&f, first, n, second, m, &err)
    if put < <ssize_t>(n + m):
        rio_atomic_add(&l.counts.bytes_out, <uint64_t>(max(put, 0) - <ssize_t>(n + m)))
    if put > 0:
        c.bytes_out += put
        progress(l, c)
    elif put < 0 and (err == EINTR or would_block(err)):
        put = 0
    elif put < 0:
        conn_close(l, c, BROKEN, err)
    return put


cdef inline void conn_write(loop_t *l, conn_t *c) noexcept nogil:
    """Send of what is held as much as the peer takes."""
    cdef ssize_t n = 0
    if ready(c):
        n = conn_send(l, c, buffer_start(&c.kept.b), c.kept.ready, NULL, 0)
        if n < 0:
            return
        buffer_consume(&c.kept.b, n)
        c.kept.ready -= n
    if ready(c) == 0:
        keep_less(c)
    next_step(l, c)


cdef inline void note(loop_t *l, size_t length) noexcept nogil:
    """Put down that so many bytes go back as one line (raw: as they came)."""
    cdef size_t cap = max(l.lengths_cap * 2, <size_t>256)
    cdef size_t *grown
    if l.lengths_n == l.lengths_cap:
        grown = <size_t *>PyMem_RawRealloc(l.lengths, cap * sizeof(size_t))
        if grown == NULL:
            return   # a line of a log is what can be spared most easily
        l.lengths = grown
        l.lengths_cap = cap
    l.lengths[l.lengths_n] = length
    l.lengths_n += 1


cdef inline void note_lines(loop_t *l, size_t held, size_t n) noexcept nogil:
    """Put down the lines in the first n bytes of the area; the first began `held` bytes before."""
    cdef const char *start = l.area
    cdef const char *end = l.area + n
    cdef const char *newline
    while start < end:
        newline = <const char *>memchr(start, c'\n', end - start)
        newline = end if newline == NULL else newline + 1
        note(l, held + <size_t>(newline - start))
        held = 0
        start = newline


cdef inline void echo_area(loop_t *l, conn_t *c, size_t n) noexcept nogil:
    """Send back what may go of the n bytes in the area, behind the beginning of a line that is held; keep the rest."""
    cdef size_t before = held(c)
    cdef size_t back = n
    cdef uint64_t lines = 0
    cdef ssize_t put = 0
    cdef size_t from_kept
    if l.max_line:
        back = whole_lines(l.area, n, &lines)
        if lines:
            rio_atomic_add(&l.counts.lines, lines)
        if n - back + (0 if back else before) >= l.max_line:
            back = n   # a line that is too long goes back in pieces
        if l.tell_lines and back:
            note_lines(l, before, back)
    elif l.tell_lines:
        note(l, n)
    if back and before:
        put = conn_send(l, c, buffer_start(&c.kept.b), before, l.area, back)
    elif back:
        put = conn_send(l, c, l.area, back, NULL, 0)
    if put < 0:
        return
    from_kept = min(<size_t>put, before)
    if from_kept:
        buffer_consume(&c.kept.b, from_kept)
    if put - from_kept < n and keep(c, l.area + put - from_kept, n - put + from_kept) < 0:
        conn_close(l, c, BROKEN, ENOMEM)
        return
    if back and c.kept != NULL:
        c.kept.ready = before + back - put
        if c.kept.ready == 0:
            keep_less(c)
    next_step(l, c)


cdef inline void conn_read(loop_t *l, conn_t *c) noexcept nogil:
    """One read, and the echo of what came."""
    cdef rio_fd f = socket_of(c)
    cdef int err = 0
    cdef ssize_t n = fd_read(&f, l.area, CHUNK, &err)
    if n > 0:
        if c.phase != LINGERING:   # too late for those, which nothing acknowledges but the kernel
            rio_atomic_add(&l.counts.bytes_in, n)
            progress(l, c)
            echo_area(l, c, n)
        return
    if n < 0 and err == EINTR:
        return
    if n < 0 and not would_block(err):
        conn_close(l, c, BROKEN, err)
        return
    if n < 0 and c.phase != DRAINING:
        return
    # The end of the input; or of what had arrived when the server was stopped.
    if c.phase == LINGERING:
        conn_close(l, c, STOPPED, 0)
        return
    c.ended = True
    if c.kept != NULL:
        c.kept.ready = held(c)
        if l.tell_lines:
            note(l, c.kept.ready)
    conn_write(l, c)

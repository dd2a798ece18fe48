# The state of an event loop and of its connections: the list of them in the order of their deadlines, what each keeps,
# and those that wait for memory. What a connection does is in _server/connection.pxd, the loop's turns are in
# _server/turns.pxd.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from rioecho._core.budget cimport (
    share_add,
    share_favour_no_more,
    share_give,
    share_reserve_room,
    share_room,
    share_t,
    share_take,
)
from rioecho._core.buffer cimport (
    buffer_clear,
    buffer_fits,
    buffer_growth,
    buffer_held,
    buffer_init,
    buffer_put,
    buffer_start,
    rio_buffer,
)
from rioecho._core.counts cimport counts_t
from rioecho._core.poller cimport poller_t
from rioecho._core.posix cimport RIO_MAPPED, rio_assert
from rioecho._server.echo cimport (
    CHUNK,
    CHUNK_MIN,
    ECHOING,
    LINGERING,
    MEMORY_LOOK,
    PAUSED,
    held_free,
    held_resize,
    held_shrink,
)


cdef enum:
    # Line lengths reported in one turn: each is a call of Python's while others wait.
    REPORTED_MAX = 256
    # While more than those wait for it, connections are read by so many bytes at a time. Even if each byte is a line, a
    # few clients bring fewer than are reported; with more of them the lengths reach the most that there may be, and
    # connections are read in turn as there is room.
    CHUNK_REPORTED = 64
    LENGTHS_MAX = 3 * CHUNK
    # Buffers from this size on are pages of their own: malloc's heap keeps freed ones that lie below another block. New
    # pages cost more than the bytes that they are for, so a few are spared for the next connections.
    CONN_MAPPED = 16_384
    SPARES = 8
    SPARES_MAX = 4_194_304         # bytes of them together
    SPARES_KEPT = 1_000_000_000    # nanoseconds


cdef struct kept_t:
    rio_buffer b         # received and not yet sent back
    size_t ready         # of those, how many may go back now; the others are the beginning of a line
    conn_t *owner
    kept_t *prev         # those that wait for memory; NULL: this one does not
    kept_t *next


cdef struct conn_t:
    # Small: of an idle connection this is all there is.
    conn_t *prev         # those of the loop, in the order of their deadlines
    conn_t *next
    kept_t *kept         # NULL: nothing
    PyObject *peer       # for on_closed, or NULL
    int64_t deadline     # for the next progress, or for the next look whether there was any
    uint64_t bytes_out
    int fd
    short events         # what is waited for; PAUSED: for memory
    short err            # it was closed for
    unsigned char phase
    unsigned char why    # it was closed: a reason
    unsigned char ended  # the input has
    unsigned char looks  # at it, since there was progress
    int unacknowledged   # of what was sent, at the last look; see peer_took()


cdef struct loop_t:
    poller_t poller
    conn_t all           # the ends of the list of connections
    conn_t *favoured     # the one connection that may use the memory's reserve, or NULL
    kept_t waiting       # the ends of the list of those that wait for memory, the longest wait first
    conn_t *gone         # those closed, to be reported
    conn_t *again        # those whose report failed for want of memory
    char *area           # CHUNK bytes for what is received
    char *spare[SPARES]  # pages that the next ones can have: they are still taken from the memory's account
    size_t spare_cap[SPARES]
    size_t spare_bytes   # of them together
    unsigned int spares
    size_t chunk         # how many of them a connection that keeps nothing is read by: less while memory is short
    size_t active
    int stop_fd          # readable when it is time to stop
    int inbox            # a pipe of conn_t pointers; NULL says that no more will come, for a fork may hide its end
    bint inbox_ended     # that NULL has come
    bint stopping
    int64_t now          # at the beginning of this turn
    int64_t look         # when to look for memory and to report again, or INT64_MAX
    int64_t idle         # nanoseconds without progress, or -1
    int64_t pause        # between two looks, LOOKS of which make that time
    int64_t drain        # nanoseconds for draining and lingering
    int64_t drained      # when that time is over
    size_t max_line      # a longer line goes back in pieces; 0: raw
    counts_t *counts
    share_t memory       # what the connections keep
    int report_closings  # also of connections without a peer
    size_t *lengths      # of the lines to be reported, LENGTHS_MAX at most; NULL: none are
    size_t lengths_n


# ---- the list of connections


cdef inline void conn_check(const loop_t *l, const conn_t *c) noexcept nogil:
    """Assert what holds between any two steps of a connection that is in the list."""
    rio_assert(c.prev.next == c and c.next.prev == c)
    rio_assert(c.phase <= LINGERING)
    rio_assert(c.kept == NULL or (c.kept.owner == c and c.kept.ready <= c.kept.b.w - c.kept.b.r))
    rio_assert(c.kept == NULL or c.kept.next == NULL or (c.events == PAUSED and c.kept.prev.next == c.kept))


cdef inline void conn_append(loop_t *l, conn_t *c) noexcept nogil:
    c.prev = l.all.prev
    c.next = &l.all
    c.prev.next = c
    l.all.prev = c


cdef inline void conn_unlink(conn_t *c) noexcept nogil:
    rio_assert(c.prev.next == c and c.next.prev == c)
    c.prev.next = c.next
    c.next.prev = c.prev


cdef inline void conn_look_later(loop_t *l, conn_t *c) noexcept nogil:
    """Set the next deadline. All have the same pause, so the last one set is the last in order."""
    c.deadline = l.now + l.pause
    if c.next != &l.all:
        conn_unlink(c)
        conn_append(l, c)


cdef inline void conn_progress(loop_t *l, conn_t *c) noexcept nogil:
    """Give a connection all of its time again."""
    if l.idle < 0 or c.phase != ECHOING:
        return
    c.looks = 0
    conn_look_later(l, c)


# ---- what a connection keeps


cdef inline size_t conn_ready(const conn_t *c) noexcept nogil:
    """How many bytes may go back and have not."""
    return 0 if c.kept == NULL else c.kept.ready


cdef inline size_t conn_held(const conn_t *c) noexcept nogil:
    """How many bytes are kept, those that may go back included."""
    return 0 if c.kept == NULL else buffer_held(&c.kept.b)


cdef inline bint loop_spare_put(loop_t *l, rio_buffer *b) noexcept nogil:
    """Keep a buffer's pages for the next one, if they are pages and there are not too many; report whether they are."""
    if (
        b.cap < b.mapped
        or l.spares == SPARES
        or l.spare_bytes + b.cap > SPARES_MAX
        or share_room(&l.memory) < SPARES_MAX
    ):
        return False
    l.spare[l.spares] = b.data
    l.spare_cap[l.spares] = b.cap
    l.spare_bytes += b.cap
    l.spares += 1
    buffer_clear(b)
    l.look = min(l.look, l.now + SPARES_KEPT)
    return True


cdef inline void loop_spare_take(loop_t *l, rio_buffer *b) noexcept nogil:
    """Give a buffer that is too small to have pages those that were used last."""
    cdef size_t held = buffer_held(b)
    rio_assert(0 < l.spares and l.spares <= SPARES and held <= l.spare_cap[l.spares - 1])
    l.spares -= 1
    if held:
        memcpy(l.spare[l.spares], buffer_start(b), held)
    held_free(&l.memory, b)
    b.w = held
    b.data = l.spare[l.spares]
    b.cap = l.spare_cap[l.spares]
    l.spare_bytes -= b.cap


cdef inline void loop_spares_free(loop_t *l) noexcept nogil:
    """Give all spare pages back to the system."""
    cdef rio_buffer b
    while l.spares:
        buffer_init(&b, 0)
        b.mapped = RIO_MAPPED(CONN_MAPPED)
        loop_spare_take(l, &b)
        held_free(&l.memory, &b)


cdef inline void loop_gauge(loop_t *l) noexcept nogil:
    """Choose the size of a read by the memory that is left. Whenever that changes, here or, as a look shows, elsewhere.
    """
    if share_room(&l.memory) < CHUNK:
        loop_spares_free(l)
    if share_room(&l.memory) >= CHUNK:
        l.chunk = CHUNK
    else:
        l.chunk = CHUNK_MIN
        l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)


cdef inline void loop_favour_no_more(loop_t *l) noexcept nogil:
    l.favoured = NULL
    share_favour_no_more(&l.memory)


cdef inline void conn_wait_for_memory(loop_t *l, conn_t *c) noexcept nogil:
    """Put a connection that keeps something among those that are read again when there is memory."""
    cdef kept_t *k = c.kept
    rio_assert(k.next == NULL)
    k.prev = l.waiting.prev
    k.next = &l.waiting
    k.prev.next = k
    l.waiting.prev = k
    l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)


cdef inline void conn_wait_no_more(conn_t *c) noexcept nogil:
    """The opposite; does nothing for one that does not wait."""
    cdef kept_t *k = c.kept
    if k != NULL and k.next != NULL:
        k.prev.next = k.next
        k.next.prev = k.prev
        k.prev = k.next = NULL


cdef inline void conn_keep_nothing(loop_t *l, conn_t *c) noexcept nogil:
    if c.kept == NULL:
        return
    conn_wait_no_more(c)
    if not loop_spare_put(l, &c.kept.b):
        held_free(&l.memory, &c.kept.b)
    share_give(&l.memory, sizeof(kept_t))
    PyMem_RawFree(c.kept)
    c.kept = NULL
    if l.chunk != CHUNK:
        loop_gauge(l)
    if c == l.favoured:
        loop_favour_no_more(l)
        l.look = l.now   # another one's turn


cdef inline int conn_keep(loop_t *l, conn_t *c, const char *data, size_t n) noexcept nogil:
    """Put n bytes behind what is kept: 0, or -1: no memory.

    conn_room() has allowed them; should another thread have taken what was left, they are kept all the same.
    """
    cdef size_t need, cap
    if c.kept == NULL:
        c.kept = <kept_t *>PyMem_RawMalloc(sizeof(kept_t))
        if c.kept == NULL:
            return -1
        share_add(&l.memory, sizeof(kept_t))
        c.kept.ready = 0
        c.kept.owner = c
        c.kept.prev = c.kept.next = NULL
        buffer_init(&c.kept.b, 0)
        c.kept.b.mapped = RIO_MAPPED(CONN_MAPPED)
    need = buffer_held(&c.kept.b) + n
    if (
        l.spares
        and not buffer_fits(&c.kept.b, need)
        and c.kept.b.cap < c.kept.b.mapped
        and buffer_growth(&c.kept.b, need) >= c.kept.b.mapped
    ):
        loop_spare_take(l, &c.kept.b)
    if not buffer_fits(&c.kept.b, need):
        cap = buffer_growth(&c.kept.b, need)
        if not share_take(&l.memory, cap - c.kept.b.cap):
            cap = max(need, c.kept.b.cap)
            share_add(&l.memory, cap - c.kept.b.cap)
        if held_resize(&l.memory, &c.kept.b, cap) < 0:
            return -1
        loop_gauge(l)
    buffer_put(&c.kept.b, data, n)
    return 0


cdef inline size_t conn_room(const loop_t *l, const conn_t *c) noexcept nogil:
    """How many bytes a connection that keeps the beginning of a line may be read by; 0: it has to wait for memory."""
    cdef size_t spare = c.kept.b.cap - c.kept.b.w
    cdef size_t room = share_room(&l.memory)
    rio_assert(c.kept.ready == 0)
    if c == l.favoured:
        room = share_reserve_room(&l.memory, c.kept.b.cap)
    if spare >= CHUNK or room >= CHUNK - spare:
        return CHUNK
    return spare + room if spare + room >= CHUNK_MIN else 0


cdef inline void conn_shrink(loop_t *l, conn_t *c) noexcept nogil:
    """Give back the memory of what was sent; all of it where nothing is left."""
    if conn_held(c) == 0:
        conn_keep_nothing(l, c)
    else:
        held_shrink(&l.memory, &c.kept.b)
        if c == l.favoured:   # the line that it was for has gone
            loop_favour_no_more(l)

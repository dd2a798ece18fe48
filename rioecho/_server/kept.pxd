# The bytes that a connection of an event loop has received and not yet sent: its buffer, spare pages for the next one,
# and the list of connections that wait for memory.
#
# A buffer begins with the bytes that are ready to be sent; those that follow are the beginning of a line.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memcpy, memmove

from rioecho._core.budget cimport (
    share_add,
    share_favour,
    share_favour_no_more,
    share_give,
    share_may_have,
    share_reserve_room,
    share_room,
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
from rioecho._core.posix cimport RIO_MAPPED, rio_assert
from rioecho._server.echo cimport CHUNK, CHUNK_MIN, MEMORY_LOOK, held_free, held_resize, held_shrink
from rioecho._server.loop cimport CONN_MAPPED, SPARES, SPARES_KEPT, SPARES_MAX, conn_t, kept_t, loop_t


cdef inline size_t conn_ready(const conn_t *c) noexcept nogil:
    """Return the number of bytes in the buffer that may be sent now."""
    return 0 if c.kept == NULL else c.kept.ready


cdef inline bint conn_is_silent(const conn_t *c) noexcept nogil:
    """Report whether nothing has come from the peer: what has come was sent back or is in the buffer."""
    return c.bytes_out == 0 and c.kept == NULL


cdef inline size_t conn_held(const conn_t *c) noexcept nogil:
    """Return the number of bytes in the buffer."""
    return 0 if c.kept == NULL else buffer_held(&c.kept.b)


cdef inline bint loop_spare_put(loop_t *l, rio_buffer *b) noexcept nogil:
    """Keep the pages of a buffer as a spare; report whether they are pages and there was room for a spare."""
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
    """Move a buffer that is not mapped into the spare used last."""
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
    """Return all spare pages to the system."""
    cdef rio_buffer b
    while l.spares:
        buffer_init(&b, 0)
        b.mapped = RIO_MAPPED(CONN_MAPPED)
        loop_spare_take(l, &b)
        held_free(&l.memory, &b)


cdef inline void loop_gauge(loop_t *l) noexcept nogil:
    """Choose the size of a read by the free memory. Called when that changes, here or as a check shows elsewhere."""
    if share_room(&l.memory) < CHUNK:
        loop_spares_free(l)
    if share_room(&l.memory) >= CHUNK:
        l.chunk = CHUNK
    else:
        l.chunk = CHUNK_MIN
        if share_may_have(&l.memory, CHUNK):
            l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)


cdef inline bint loop_favour(loop_t *l, conn_t *c, size_t cap) noexcept nogil:
    """Claim the reserve for a connection whose buffer has cap bytes. Reports whether that succeeded."""
    if l.favoured != NULL or not share_favour(&l.memory, cap):
        return False
    l.favoured = c
    l.fulfilled = l.handler == NULL   # without one, only a whole line is sent
    return True


cdef inline void loop_favour_no_more(loop_t *l) noexcept nogil:
    l.favoured = NULL
    share_favour_no_more(&l.memory)


cdef inline void conn_wait_for_memory(loop_t *l, conn_t *c) noexcept nogil:
    """Add a connection with a buffer to the list of those that wait for memory."""
    cdef kept_t *k = c.kept
    rio_assert(k.next == NULL)
    k.prev = l.waiting.prev
    k.next = &l.waiting
    k.prev.next = k
    l.waiting.prev = k
    l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)


cdef inline void conn_wait_no_more(conn_t *c) noexcept nogil:
    """Remove a connection from the list of those that wait for memory, if it is in it."""
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
        l.look = l.now   # so that another connection may use the reserve


cdef inline int conn_reserve(loop_t *l, conn_t *c, size_t n) noexcept nogil:
    """Reserve room for n more bytes in the buffer. Returns 0, or -1 if the allocation fails.

    conn_room() has permitted them; they are kept even if another thread has used up the budget since.
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
    return 0


cdef inline int conn_keep(loop_t *l, conn_t *c, const char *data, size_t n) noexcept nogil:
    """Append n bytes to the buffer. Returns 0, or -1 if the allocation fails."""
    if conn_reserve(l, c, n) < 0:
        return -1
    buffer_put(&c.kept.b, data, n)
    return 0


cdef inline size_t conn_rest(const conn_t *c) noexcept nogil:
    """Return the number of bytes of the beginning of a line in the buffer, which follow those that are ready."""
    return conn_held(c) - conn_ready(c)


cdef inline void conn_drop_rest(conn_t *c) noexcept nogil:
    """Remove the beginning of a line from the buffer."""
    if c.kept != NULL:
        c.kept.b.w = c.kept.b.r + c.kept.ready


cdef inline int conn_keep_ready(loop_t *l, conn_t *c, const char *data, size_t n) noexcept nogil:
    """Add n bytes to those that are ready, in front of the beginning of a line. Returns 0, or -1 if there is no memory.
    """
    cdef size_t rest = conn_rest(c)
    cdef char *place
    if conn_keep(l, c, data, n) < 0:
        return -1
    if rest:
        place = buffer_start(&c.kept.b) + c.kept.ready
        memmove(place + n, place, rest)
        memcpy(place, data, n)
    c.kept.ready += n
    return 0


cdef inline size_t conn_room(const loop_t *l, const conn_t *c) noexcept nogil:
    """Return the size of the next read of a connection that holds the beginning of a line; 0: wait for memory."""
    cdef size_t spare = c.kept.b.cap - c.kept.b.w
    cdef size_t room = share_room(&l.memory)
    rio_assert(c.kept.ready == 0)
    if c == l.favoured:
        room = share_reserve_room(&l.memory, c.kept.b.cap)
    if spare >= CHUNK or room >= CHUNK - spare:
        return CHUNK
    return spare + room if spare + room >= CHUNK_MIN else 0


cdef inline void conn_shrink(loop_t *l, conn_t *c) noexcept nogil:
    """Release the memory of bytes that were sent, all of it if the buffer is empty."""
    if conn_held(c) == 0:
        conn_keep_nothing(l, c)
    else:
        held_shrink(&l.memory, &c.kept.b)
        if c == l.favoured and l.fulfilled:   # the line that needed the reserve has been sent
            loop_favour_no_more(l)

# The buffer and the framing: memory and separators. Knows no descriptor, no Python object, no error but "no memory".
#
#       data          r                 w            cap
#        |  consumed  |  held: readable |    room    |
#
# The reader, the echo loop and the load loop all use this one buffer and this one finder. Two promises hold for any
# sequence of calls, at a cost that is constant per byte received:
#
#   * no byte is looked at twice for the same separator (`scanned`, `sep_scanned`);
#   * no byte is moved without need: the held bytes slide down only after as many bytes as are moved have come in.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memchr, memcpy, memmove

from rioecho._core.posix cimport (
    RIO_MAPPED,
    memmem,
    rio_assert,
    rio_memrchr,
    rio_pages_get,
    rio_pages_give,
    rio_pages_resize,
)


cdef enum:
    MAPPED = 131_072   # bytes, from which on a buffer is pages of its own


cdef enum framing:
    FOUND       # the frame is whole; its length, separator included, has been stored
    NEED_MORE   # no separator yet
    TOO_LONG    # no separator within the limit, and the limit is exceeded


cdef struct rio_buffer:
    char *data           # NULL until the first byte needs room
    size_t r             # index of the next byte out
    size_t w             # index of the next byte in
    size_t cap           # bytes allocated
    size_t base          # what is allocated at first, and again once a long frame has gone
    size_t mapped        # from how many bytes on it is pages of its own
    size_t scanned       # of the held bytes, how many are known to hold no newline
    size_t sep_scanned   # the same for the owner's other separator; the owner resets it when that changes


# ---- memory: blocks of `mapped` bytes and more are pages of their own, which the system has back when they are freed


cdef inline char *memory_get(size_t n, size_t mapped) noexcept nogil:
    """Allocate n bytes (n > 0); NULL: no memory."""
    return rio_pages_get(n) if n >= mapped else <char *>PyMem_RawMalloc(n)


cdef inline void memory_give(char *data, size_t n, size_t mapped) noexcept nogil:
    """Free what was allocated as n bytes; nothing for NULL."""
    if data != NULL and n >= mapped:
        rio_pages_give(data, n)
    else:
        PyMem_RawFree(data)


cdef inline char *memory_resize(char *data, size_t before, size_t n, size_t mapped) noexcept nogil:
    """Allocate n bytes that begin with the old ones; NULL: no memory, and the old ones are as they were."""
    cdef char *resized
    if before >= mapped and n >= mapped:
        return rio_pages_resize(data, before, n)
    if before < mapped and n < mapped:
        return <char *>PyMem_RawRealloc(data, n)
    resized = memory_get(n, mapped)
    if resized != NULL:
        if data != NULL:
            memcpy(resized, data, min(before, n))
        memory_give(data, before, mapped)
    return resized


# ---- the buffer


cdef inline void buffer_clear(rio_buffer *b) noexcept nogil:
    b.data = NULL
    b.r = b.w = b.cap = b.scanned = b.sep_scanned = 0


cdef inline void buffer_init(rio_buffer *b, size_t base) noexcept nogil:
    buffer_clear(b)
    b.base = base
    b.mapped = RIO_MAPPED(MAPPED)


cdef inline void buffer_free(rio_buffer *b) noexcept nogil:
    """Give the memory back. The buffer is as after buffer_init: empty and usable."""
    memory_give(b.data, b.cap, b.mapped)
    buffer_clear(b)


cdef inline size_t buffer_held(const rio_buffer *b) noexcept nogil:
    return b.w - b.r


cdef inline char *buffer_start(rio_buffer *b) noexcept nogil:
    """The first held byte; good until the next call that reserves room."""
    return b.data + b.r


cdef inline bint buffer_consistent(const rio_buffer *b) noexcept nogil:
    """Report whether what holds between any two calls does; for rio_assert, which elsewhere leaves the call out."""
    return (
        b.r <= b.w
        and b.w <= b.cap
        and (b.data == NULL) == (b.cap == 0)
        and b.scanned <= b.w - b.r
        and b.sep_scanned <= b.w - b.r
    )


cdef inline void buffer_consume(rio_buffer *b, size_t n) noexcept nogil:
    """Drop the first n held bytes; of more than are held, those that are.

    To ask for more is a mistake, which the debug build ends at. Elsewhere it must not make the buffer claim memory that
    lies behind it: a comparison is cheap beside that.
    """
    rio_assert(buffer_consistent(b))
    rio_assert(n <= b.w - b.r)
    n = min(n, b.w - b.r)
    b.r += n
    if b.scanned | b.sep_scanned:   # else, as a rule: a frame was found where the last one ended
        b.scanned = b.scanned - n if b.scanned > n else 0
        b.sep_scanned = b.sep_scanned - n if b.sep_scanned > n else 0


cdef inline void buffer_drop_last(rio_buffer *b, size_t n) noexcept nogil:
    """Drop the last n held bytes; of more than are held, those that are, as buffer_consume."""
    cdef size_t held
    rio_assert(buffer_consistent(b))
    rio_assert(n <= b.w - b.r)
    b.w -= min(n, b.w - b.r)
    held = b.w - b.r
    b.scanned = min(b.scanned, held)
    b.sep_scanned = min(b.sep_scanned, held)


cdef inline size_t buffer_room(const rio_buffer *b) noexcept nogil:
    """How many bytes can come in at data + w before room has to be made."""
    return b.cap - b.w


cdef inline bint buffer_fits(rio_buffer *b, size_t need) noexcept nogil:
    """Report whether the memory can hold `need` bytes, those held now included.

    The held bytes slide down when the room behind them is short, but only over at least as many consumed bytes as are
    moved.
    """
    cdef size_t held = b.w - b.r
    rio_assert(buffer_consistent(b))
    if held == 0:
        b.r = b.w = 0
    elif held <= b.r and need <= b.cap and (b.cap - b.r < need or b.cap - b.w < b.cap // 4):
        memmove(b.data, b.data + b.r, held)
        b.r = 0
        b.w = held
    return b.cap != 0 and need <= b.cap - b.r


cdef inline size_t buffer_growth(const rio_buffer *b, size_t need) noexcept nogil:
    """The memory to grow to for `need` bytes: at least twice as much, so that each byte is moved but a few times."""
    cdef size_t cap = b.cap * 2 if b.cap <= SIZE_MAX // 2 else SIZE_MAX
    return max(max(cap, b.base), need)


cdef inline int buffer_resize(rio_buffer *b, size_t cap) noexcept nogil:
    """Have `cap` bytes of memory, more or less than now but enough for those held.

    0, or -1: no memory, and nothing changed.
    """
    cdef size_t held = b.w - b.r
    cdef char *data
    rio_assert(cap and held <= cap)
    if b.r == 0 and held >= b.cap // 2:   # realloc copies all there is, held or not
        data = memory_resize(b.data, b.cap, cap, b.mapped)
        if data == NULL:
            return -1
    else:
        data = memory_get(cap, b.mapped)
        if data == NULL:
            return -1
        memcpy(data, b.data + b.r, held)
        memory_give(b.data, b.cap, b.mapped)
        b.r = 0
        b.w = held
    b.data = data
    b.cap = cap
    return 0


cdef inline int buffer_reserve(rio_buffer *b, size_t need) noexcept nogil:
    """Make it possible to hold `need` bytes, those held now included. 0, or -1: no memory, and nothing changed.

    The held bytes slide down, or the memory doubles. So both are paid for by bytes that have come and gone.
    """
    if buffer_fits(b, need):
        return 0
    return buffer_resize(b, buffer_growth(b, need))


cdef inline void buffer_added(rio_buffer *b, size_t n) noexcept nogil:
    """Hold n bytes more, which have been put at data + w, where room has been reserved."""
    rio_assert(n <= b.cap - b.w)
    b.w += n
    rio_assert(buffer_consistent(b))


cdef inline void buffer_put(rio_buffer *b, const char *data, size_t n) noexcept nogil:
    """Take in n bytes, for which room has been reserved."""
    rio_assert(n <= b.cap - b.w)
    memcpy(b.data + b.w, data, n)
    buffer_added(b, n)


cdef inline void buffer_trim(rio_buffer *b) noexcept nogil:
    """Let an empty buffer that a long frame had grown go back to its base size."""
    if b.r == b.w and b.cap > b.base:
        buffer_free(b)


cdef inline framing find_frame(
    const char *data, size_t held, const char *sep, size_t length, size_t *scanned, size_t limit, size_t *n
) noexcept nogil:
    """Look for the separator in the first `limit` of the held bytes, from where the last look ended.

    FOUND stores the frame's length, separator included, in n. TOO_LONG: more than `limit` bytes are held and no
    frame ends within them.
    """
    cdef size_t span = held if held < limit else limit
    cdef const char *found
    cdef size_t start = scanned[0]
    rio_assert(start <= held)
    if start < span:
        if length == 1:
            found = <const char *>memchr(data + start, sep[0], span - start)
        else:
            # The separator may have begun in the last length - 1 bytes of the last look.
            start = start - (length - 1) if start >= length else 0
            found = <const char *>memmem(data + start, span - start, sep, length)
        if found != NULL:
            n[0] = <size_t>(found - data) + length
            return FOUND
        scanned[0] = span
    return TOO_LONG if held > limit else NEED_MORE


cdef inline framing find_line(rio_buffer *b, size_t limit, size_t *n) noexcept nogil:
    rio_assert(buffer_consistent(b))
    return find_frame(b.data + b.r, b.w - b.r, b"\n", 1, &b.scanned, limit, n)


cdef inline size_t whole_lines(const char *data, size_t n, uint64_t *lines) noexcept nogil:
    """How many of n bytes are whole lines; adds how many lines those are.

    For those who pass lines on and want none of them by itself: a look at every line would cost more than the rest.
    """
    cdef const char *last = NULL
    cdef size_t end, stop
    cdef size_t i = 0
    cdef unsigned char few   # so narrow that a compiler adds sixteen bytes and more at once
    if n:   # with none there may be no memory either
        last = <const char *>rio_memrchr(data, c'\n', n)
    if last == NULL:
        return 0
    end = <size_t>(last - data) + 1
    while i < end:
        stop = min(end, i + 255)
        few = 0
        while i < stop:
            few += data[i] == c'\n'
            i += 1
        lines[0] += few
    return end

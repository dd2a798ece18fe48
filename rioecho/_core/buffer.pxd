# The buffer and the framing: memory and separators. No descriptors, no Python objects; the only error is "no memory".
#
#       data  [mark]        r                 w            cap
#        |      |  consumed  |  held: readable |    room    |
#
# If the owner has set a mark, the bytes behind it are kept although they were consumed, and can be held again.
#
# The reader, the echo loop and the load loop share this buffer and this search. For any sequence of calls the cost is
# constant per byte received:
#
#   * no byte is scanned twice for the same separator (`scanned`, `sep_scanned`);
#   * the held bytes are moved to the front only after at least as many bytes have been consumed.

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
    MAPPED = 131_072   # minimum size in bytes of a buffer that is mapped by mmap(2)


cdef enum framing:
    FOUND       # the frame is complete; its length, including the separator, has been stored
    NEED_MORE   # no separator yet
    TOO_LONG    # no separator within the limit, and the limit is exceeded


cdef struct rio_buffer:
    char *data           # NULL until room is first reserved
    void (*give)(char *data) noexcept nogil   # frees memory that was adopted; NULL if the buffer has allocated it
    size_t r             # index of the next byte to read
    size_t w             # index of the next byte to write
    size_t mark          # index of the first consumed byte that is kept, or SIZE_MAX, greater than any index
    size_t cap           # number of bytes allocated
    size_t base          # size of the first allocation, and of the next one after a long frame
    size_t mapped        # minimum size in bytes that is mapped by mmap(2)
    size_t scanned       # number of held bytes, from the first, that contain no newline
    size_t sep_scanned   # the same for the owner's other separator; the owner resets it when that changes


# ---- memory: blocks of `mapped` bytes or more are mapped by mmap(2), so that freeing one returns it to the system


cdef inline char *memory_get(size_t n, size_t mapped) noexcept nogil:
    """Allocate n bytes (n > 0). Returns NULL if there is no memory."""
    return rio_pages_get(n) if n >= mapped else <char *>PyMem_RawMalloc(n)


cdef inline void memory_give(char *data, size_t n, size_t mapped) noexcept nogil:
    """Free a block that was allocated with n bytes; data may be NULL."""
    if data != NULL and n >= mapped:
        rio_pages_give(data, n)
    else:
        PyMem_RawFree(data)


cdef inline char *memory_resize(char *data, size_t before, size_t n, size_t mapped) noexcept nogil:
    """Resize a block to n bytes, as realloc(3) does. Returns NULL, with the block unchanged, if there is no memory."""
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
    b.give = NULL
    b.r = b.w = b.cap = b.scanned = b.sep_scanned = 0
    b.mark = SIZE_MAX


cdef inline void buffer_init(rio_buffer *b, size_t base) noexcept nogil:
    buffer_clear(b)
    b.base = base
    b.mapped = RIO_MAPPED(MAPPED)


cdef inline void buffer_give(rio_buffer *b) noexcept nogil:
    """Free the memory; the caller replaces it."""
    if b.give != NULL:
        b.give(b.data)
        b.give = NULL
    else:
        memory_give(b.data, b.cap, b.mapped)


cdef inline void buffer_free(rio_buffer *b) noexcept nogil:
    """Free the memory. The buffer is as after buffer_init: empty and usable."""
    buffer_give(b)
    buffer_clear(b)


cdef inline size_t buffer_held(const rio_buffer *b) noexcept nogil:
    return b.w - b.r


cdef inline char *buffer_start(rio_buffer *b) noexcept nogil:
    """Return a pointer to the first held byte, valid until the next call that reserves room or frees memory."""
    return b.data + b.r


cdef inline bint buffer_consistent(const rio_buffer *b) noexcept nogil:
    """Report whether the invariants hold that must hold between any two calls; for rio_assert."""
    return (
        b.r <= b.w
        and b.w <= b.cap
        and (b.data == NULL) == (b.cap == 0)
        and b.scanned <= b.w - b.r
        and b.sep_scanned <= b.w - b.r
        and (b.mark <= b.r or b.mark == SIZE_MAX)
    )


cdef inline size_t buffer_first(const rio_buffer *b) noexcept nogil:
    """Return the index of the first byte that may not be overwritten: the first one held, or kept behind the mark."""
    return min(b.r, b.mark)


cdef inline void buffer_moved(rio_buffer *b) noexcept nogil:
    """Adapt the indices after the bytes from the first one that is kept have been moved to the front."""
    cdef size_t first = buffer_first(b)
    b.r -= first
    b.w -= first
    if b.mark != SIZE_MAX:
        b.mark = 0


cdef inline void buffer_mark(rio_buffer *b) noexcept nogil:
    """Keep the bytes that are consumed from now on. There is one mark; the owner does not set it twice."""
    rio_assert(b.mark == SIZE_MAX)
    b.mark = b.r


cdef inline void buffer_unmark(rio_buffer *b) noexcept nogil:
    """Keep consumed bytes no longer."""
    b.mark = SIZE_MAX


cdef inline void buffer_rewind(rio_buffer *b, size_t kept) noexcept nogil:
    """Hold again all but the first ``kept`` bytes behind the mark."""
    rio_assert(b.mark != SIZE_MAX and kept <= b.r - b.mark)
    b.r = b.mark + kept
    b.scanned = b.sep_scanned = 0


cdef inline void buffer_consume(rio_buffer *b, size_t n) noexcept nogil:
    """Drop the first n held bytes; all of them if n is larger than their number.

    A larger n is a bug in the caller, and an assertion. A release build limits n, because a buffer that claims the
    memory behind its end is worse than the cost of a comparison.
    """
    rio_assert(buffer_consistent(b))
    rio_assert(n <= b.w - b.r)
    n = min(n, b.w - b.r)
    b.r += n
    if b.scanned | b.sep_scanned:   # usually both are 0, because the last search found a frame
        b.scanned = b.scanned - n if b.scanned > n else 0
        b.sep_scanned = b.sep_scanned - n if b.sep_scanned > n else 0


cdef inline void buffer_drop_last(rio_buffer *b, size_t n) noexcept nogil:
    """Drop the last n held bytes; all of them if n is larger than their number, as in buffer_consume."""
    cdef size_t held
    rio_assert(buffer_consistent(b))
    rio_assert(n <= b.w - b.r)
    b.w -= min(n, b.w - b.r)
    held = b.w - b.r
    b.scanned = min(b.scanned, held)
    b.sep_scanned = min(b.sep_scanned, held)


cdef inline size_t buffer_room(const rio_buffer *b) noexcept nogil:
    """Return the number of bytes that can be stored at data + w without reserving room."""
    return b.cap - b.w


cdef inline bint buffer_fits(rio_buffer *b, size_t need) noexcept nogil:
    """Report whether the buffer can hold ``need`` bytes, including those held now, without an allocation.

    If there is little room behind the held bytes, they are moved to the front, but only if at least as many bytes have
    been dropped as are moved.
    """
    cdef size_t first = buffer_first(b)
    cdef size_t size = b.w - first
    rio_assert(buffer_consistent(b))
    if size == 0:
        buffer_moved(b)
    elif size <= first and need <= b.cap - (b.r - first) and (b.cap - b.r < need or b.cap - b.w < b.cap // 4):
        memmove(b.data, b.data + first, size)
        buffer_moved(b)
    return b.cap != 0 and need <= b.cap - b.r


cdef inline size_t buffer_growth(const rio_buffer *b, size_t need) noexcept nogil:
    """Return the size to grow to for ``need`` bytes: at least twice the old one, so that growing is amortised."""
    cdef size_t cap = b.cap * 2 if b.cap <= SIZE_MAX // 2 else SIZE_MAX
    cdef size_t kept = b.r - buffer_first(b)
    return max(max(cap, b.base), kept + need if need <= SIZE_MAX - kept else SIZE_MAX)


cdef inline int buffer_resize(rio_buffer *b, size_t cap) noexcept nogil:
    """Change the size of the memory to ``cap`` bytes, enough for those held and kept.

    Returns 0, or -1 with nothing changed.
    """
    cdef size_t first = buffer_first(b)
    cdef size_t size = b.w - first
    cdef char *data
    rio_assert(cap and size <= cap)
    # Resize the block, unless it was adopted or it is cheaper to copy only the bytes that are needed.
    if first == 0 and size >= b.cap // 2 and b.give == NULL:
        data = memory_resize(b.data, b.cap, cap, b.mapped)
        if data == NULL:
            return -1
    else:
        data = memory_get(cap, b.mapped)
        if data == NULL:
            return -1
        memcpy(data, b.data + first, size)
        buffer_give(b)
        buffer_moved(b)
    b.data = data
    b.cap = cap
    return 0


cdef inline int buffer_reserve(rio_buffer *b, size_t need) noexcept nogil:
    """Reserve room for ``need`` bytes, including those held now. Returns 0, or -1 with nothing changed (no memory).

    Either the held bytes are moved to the front or the memory doubles, so the cost per byte received is constant.
    """
    if buffer_fits(b, need):
        return 0
    return buffer_resize(b, buffer_growth(b, need))


cdef inline void buffer_added(rio_buffer *b, size_t n) noexcept nogil:
    """Add n bytes that the caller has stored at data + w, in reserved room."""
    rio_assert(n <= b.cap - b.w)
    b.w += n
    rio_assert(buffer_consistent(b))


cdef inline void buffer_put(rio_buffer *b, const char *data, size_t n) noexcept nogil:
    """Append a copy of n bytes, for which room has been reserved."""
    rio_assert(n <= b.cap - b.w)
    memcpy(b.data + b.w, data, n)
    buffer_added(b, n)


cdef inline void buffer_insert(rio_buffer *b, const char *data, size_t n) noexcept nogil:
    """Put a copy of n bytes in front of the held ones. Room for n more bytes has been reserved, or as many consumed.

    ``data`` is not in the buffer's memory. Bytes that are kept stay kept, in front of these.
    """
    cdef size_t held = b.w - b.r
    if b.mark == SIZE_MAX and b.r >= n:
        b.r -= n
    else:
        rio_assert(n <= b.cap - b.w)
        memmove(b.data + b.r + n, b.data + b.r, held)
        b.w += n
    memcpy(b.data + b.r, data, n)
    b.scanned = b.sep_scanned = 0
    rio_assert(buffer_consistent(b))


cdef inline void buffer_adopt(
    rio_buffer *b, char *data, size_t cap, void (*give)(char *data) noexcept nogil, rio_buffer *aside
) noexcept nogil:
    """Move the held bytes to ``data``, which becomes the buffer's memory; ``give`` frees it.

    ``aside``, which holds nothing, gets the memory that the buffer had.
    """
    cdef size_t held = b.w - b.r
    rio_assert(held <= cap and aside.r == aside.w and b.mark == SIZE_MAX)
    if held:
        memcpy(data, b.data + b.r, held)
    if b.data != NULL:
        buffer_free(aside)
        aside.data = b.data
        aside.give = b.give
        aside.cap = b.cap
    b.data = data
    b.give = give
    b.r = 0
    b.w = held
    b.cap = cap
    rio_assert(buffer_consistent(b))


cdef inline void buffer_move(rio_buffer *b, rio_buffer *source) noexcept nogil:
    """Replace the memory and the held bytes by those of ``source``, and clear that.

    The first bytes of both must be equal, as far as both hold any: what was scanned stays scanned.
    """
    rio_assert(b.mark == SIZE_MAX)
    buffer_give(b)
    b.data = source.data
    b.give = source.give
    b.r = source.r
    b.w = source.w
    b.cap = source.cap
    buffer_clear(source)
    b.scanned = min(b.scanned, b.w - b.r)
    b.sep_scanned = min(b.sep_scanned, b.w - b.r)
    rio_assert(buffer_consistent(b))


cdef inline void buffer_trim(rio_buffer *b, size_t need) noexcept nogil:
    """Free memory that a long frame has left: all that exceeds the base size and twice ``need``. Not while marked.

    ``need`` is at least the number of held bytes. They are copied only after half of them have been consumed, so the
    cost per byte is constant. If there is no memory to copy them to, the buffer stays as it is.
    """
    if b.cap <= b.base or b.mark != SIZE_MAX:
        return
    if b.r == b.w:
        if b.cap > need:
            buffer_free(b)
    elif (b.cap - b.base) // 2 > need:
        buffer_resize(b, need + b.base)


cdef inline framing find_frame(
    const char *data, size_t held, const char *sep, size_t length, size_t *scanned, size_t limit, size_t *n
) noexcept nogil:
    """Search the first ``limit`` held bytes for the separator, starting where the last search ended.

    FOUND: n is the length of the frame, including the separator. TOO_LONG: more than ``limit`` bytes are held and no
    frame ends within the limit.
    """
    cdef size_t span = held if held < limit else limit
    cdef const char *found
    cdef size_t start = scanned[0]
    rio_assert(start <= held)
    if start < span:
        if length == 1:
            found = <const char *>memchr(data + start, sep[0], span - start)
        else:
            # The separator may begin in the last length - 1 bytes that were scanned.
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
    """Return the number of bytes up to the last newline, and add the number of lines to ``lines``.

    For callers that forward lines without handling each: a search per line would dominate their cost.
    """
    cdef const char *last = NULL
    cdef size_t end, stop
    cdef size_t i = 0
    cdef unsigned char few   # a single byte, so that the compiler can vectorise the loop
    if n:   # if there are none, data may be NULL
        last = <const char *>rio_memrchr(data, c'\n', n)
    if last == NULL:
        return 0
    end = <size_t>(last - data) + 1
    while i < end:
        stop = min(end, i + 240)   # at most 255; a multiple of 16, the size of a vector, so that nothing is left of it
        few = 0
        while i < stop:
            few += data[i] == c'\n'
            i += 1
        lines[0] += few
    return end

# Characters and newlines in the bytes of a text: memory only, no Python objects.
#
# A cut between two characters is safe for decoding: both parts together decode to what the whole does, even if some of
# the bytes are invalid.

from libc.string cimport memchr, memcpy

from rioecho._core.posix cimport rio_assert
from rioecho._core.utf8 cimport starts_character


cdef enum:
    # Kinds of newlines, as bits.
    CR = 1
    LF = 2
    CRLF = 4


cdef inline bint find_any_newline(
    const char *data, size_t n, bint eof, size_t *no_lf, size_t *no_cr, size_t *length
) noexcept nogil:
    """Search for the end of a line that ends in CR, LF or CRLF, and store the length of the line.

    A CR that is the last byte is an end only at EOF, because an LF may follow. ``no_lf`` and ``no_cr`` are the numbers
    of bytes that earlier searches have found free of each, so that no byte is scanned twice.
    """
    cdef size_t end = n
    cdef size_t i
    cdef const char *lf = NULL
    cdef const char *cr = NULL
    if no_lf[0] < n:
        lf = <const char *>memchr(data + no_lf[0], c'\n', n - no_lf[0])
    if lf != NULL:
        end = <size_t>(lf - data)
    if no_cr[0] < end:
        cr = <const char *>memchr(data + no_cr[0], c'\r', end - no_cr[0])
    if cr == NULL:
        if lf != NULL:
            length[0] = end + 1
            return True
        no_lf[0] = no_cr[0] = n
        return False
    no_lf[0] = end
    i = <size_t>(cr - data)
    if i + 1 == n and not eof:
        no_cr[0] = i
        return False
    length[0] = i + 2 if i + 1 == end and lf != NULL else i + 1
    return True


cdef inline int newline_at_end(const char *data, size_t n) noexcept nogil:
    """Return the kind of newline that a line ends in, 0 if none."""
    if n and data[n - 1] == c'\n':
        return CRLF if n > 1 and data[n - 2] == c'\r' else LF
    return CR if n and data[n - 1] == c'\r' else 0


cdef inline int newlines_in(const char *data, size_t n) noexcept nogil:
    """Return the kinds of newlines in the data, ORed."""
    cdef int kinds = 0
    cdef size_t i = 0
    if n == 0 or memchr(data, c'\r', n) == NULL:
        return LF if n and memchr(data, c'\n', n) != NULL else 0
    while i < n and kinds != CR | LF | CRLF:
        if data[i] == c'\n':
            kinds |= LF
        elif data[i] == c'\r':
            if i + 1 < n and data[i + 1] == c'\n':
                kinds |= CRLF
                i += 1
            else:
                kinds |= CR
        i += 1
    return kinds


cdef inline size_t count_byte(const char *data, size_t n, char byte) noexcept nogil:
    """Return how many of the bytes are ``byte``."""
    cdef size_t i, count = 0
    for i in range(n):
        count += data[i] == byte
    return count


cdef inline size_t utf8_length(const char *data, size_t n) noexcept nogil:
    """Return the length of the first character in n > 0 bytes of UTF-8; if it is cut off, the length of its part."""
    cdef unsigned char lead = data[0]
    cdef size_t length = 1 if lead < 0xC2 or lead > 0xF4 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    cdef size_t i = 1
    while i < length and i < n and not starts_character(data[i]):
        i += 1
    return i


cdef inline size_t span_characters(
    const char *data, size_t n, size_t most, bint utf8, bint joined, bint eof
) noexcept nogil:
    """Return the length of the first ``most`` characters in UTF-8 or, unless ``utf8``, in an encoding of single bytes.

    If ``joined``, CRLF counts as one character, and a CR at the end of the data is not included unless at EOF. The
    last character may be cut off by the end of the data. Of invalid UTF-8 the result may hold more characters.
    """
    cdef size_t i = 0, j
    cdef unsigned char few   # a single byte, so that the compiler can vectorise the loops
    cdef signed char first = -64 if utf8 else -128   # as in starts_character; any byte starts a character of one byte
    if n <= most:
        return n - 1 if joined and n and data[n - 1] == c'\r' and not eof else n
    if not utf8 and not joined:
        return most
    while most >= 64 and n - i > 64:
        few = 0
        if joined:
            for j in range(i, i + 64):
                few += (<signed char>data[j] >= first) - ((data[j] == c'\r') & (data[j + 1] == c'\n'))
        else:
            for j in range(i, i + 64):
                few += <signed char>data[j] >= first
        i += 64
        most -= few
    # A pair counts where its LF is. A block that ends between the two counts at most 63, so more are to be found then.
    rio_assert(not (i and joined and most == 0 and data[i - 1] == c'\r' and data[i] == c'\n'))
    j = min(n, i + 3) if i and utf8 else 0
    while i < j and not starts_character(data[i]):
        i += 1   # the rest of the last character in the block
    while i < n and most:
        if joined and data[i] == c'\r':
            if i + 1 == n and not eof:
                break
            i += 2 if i + 1 < n and data[i + 1] == c'\n' else 1
        else:
            i += utf8_length(data + i, n - i) if utf8 else 1
        most -= 1
    return i


cdef inline size_t copy_with_lf(char *to, const char *data, size_t n) noexcept nogil:
    """Copy data with each CR and CRLF replaced by an LF. Returns the length of the copy, at most n."""
    cdef size_t i = 0, size = 0, m
    cdef const char *cr
    while i < n:
        cr = <const char *>memchr(data + i, c'\r', n - i)
        m = n - i if cr == NULL else <size_t>(cr - data) - i
        memcpy(to + size, data + i, m)
        size += m
        i += m
        if cr != NULL:
            to[size] = c'\n'
            size += 1
            i += 2 if i + 1 < n and data[i + 1] == c'\n' else 1
    return size

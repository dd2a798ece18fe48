# Decoding UTF-8 into the memory of a str: memory only, no Python objects.
#
# utf8_measure() tells how much memory the characters need, utf8_decode() checks and stores them. Both leave invalid
# UTF-8 to CPython, whose errors and error handlers programs know.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from "Python.h":
    const bint PY_LITTLE_ENDIAN
    int __builtin_ctzll(unsigned long long word) nogil


cdef enum:
    # The first byte of a character above U+00FF, and of one above U+FFFF; the highest byte of UTF-8.
    UTF8_WIDE = 0xC4
    UTF8_ASTRAL = 0xF0
    UTF8_LAST = 0xF4


ctypedef fused utf8_unit:
    uint8_t
    uint16_t
    uint32_t


cdef inline uint64_t load_word(const uint8_t *b) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, b, 8)
    return word


cdef inline bint starts_character(char c) noexcept nogil:
    """Report whether a byte of UTF-8 is not a continuation byte."""
    return <signed char>c >= -64


cdef inline bint is_ascii(const char *data, size_t n) noexcept nogil:
    cdef uint64_t ored = 0
    cdef size_t i = 0
    while n - i >= 8:
        ored |= load_word(<const uint8_t *>data + i)
        i += 8
    while i < n:
        ored |= <uint8_t>data[i]
        i += 1
    return ored & 0x8080808080808080ULL == 0


cdef inline size_t utf8_measure(const char *data, size_t n, uint8_t *highest) noexcept nogil:
    """Return the number of characters in valid UTF-8, and store its highest byte."""
    cdef const uint8_t *b = <const uint8_t *>data
    cdef size_t i = 0, stop, count = 0
    cdef uint8_t few, top = 0   # single bytes, so that the compiler can vectorise the loop
    while i < n:
        stop = min(n, i + 255)
        few = 0
        while i < stop:
            few += starts_character(data[i])
            top = b[i] if b[i] > top else top
            i += 1
        count += few
    highest[0] = top
    return count


cdef inline size_t count_characters(const char *data, size_t n) noexcept nogil:
    """Return the number of characters in valid UTF-8."""
    cdef uint8_t highest
    return utf8_measure(data, n, &highest)


cdef inline uint64_t spread(uint64_t word) noexcept nogil:
    """Return the lowest four bytes of a word, each in a quarter of the result."""
    word &= 0xFFFFFFFFULL
    word = (word | word << 16) & 0x0000FFFF0000FFFFULL
    return (word | word << 8) & 0x00FF00FF00FF00FFULL


cdef inline void store_ascii(utf8_unit *to, uint64_t word) noexcept nogil:
    """Store the eight bytes of a word, the lowest first, as units."""
    cdef uint64_t half
    cdef size_t j
    if utf8_unit is uint8_t:
        memcpy(to, &word, 8)
    elif utf8_unit is uint16_t:
        half = spread(word)
        memcpy(to, &half, 8)
        half = spread(word >> 32)
        memcpy(to + 4, &half, 8)
    else:
        for j in range(8):
            to[j] = <uint8_t>(word >> 8 * j)


cdef inline bint utf8_decode(const char *data, size_t n, utf8_unit *to, size_t count) noexcept nogil:
    """Decode n bytes of UTF-8. Returns False if they are not valid or not complete.

    ``to`` has room for ``count`` characters, as ``utf8_measure()`` has counted them, and its units for the highest.
    """
    cdef const uint8_t *b = <const uint8_t *>data
    cdef utf8_unit *end = to + count
    cdef size_t i = 0, some
    cdef uint32_t c
    cdef uint64_t word, wrong
    while i < n:
        c = b[i]
        if c < 0x80:
            if PY_LITTLE_ENDIAN:
                # Eight bytes at a time, of which those before the first that is not ASCII count.
                while n - i >= 8 and end - to >= 8 and b[i + 1] < 0x80:
                    word = load_word(b + i)
                    store_ascii(to, word)
                    word &= 0x8080808080808080ULL
                    some = 8 if word == 0 else __builtin_ctzll(word) >> 3
                    to += some
                    i += some
                    if some < 8:
                        break
            while i < n and b[i] < 0x80:
                to[0] = b[i]
                to += 1
                i += 1
        elif c < 0xE0:
            if utf8_unit is uint16_t and PY_LITTLE_ENDIAN:
                # Four characters of two bytes at a time, each in a quarter of the word; those before the first quarter
                # that is anything else count.
                while n - i >= 8 and end - to >= 4:
                    word = load_word(b + i)
                    wrong = (word & 0xC0E0C0E0C0E0C0E0ULL) ^ 0x80C080C080C080C0ULL
                    # A lead byte of 0xC0 or 0xC1 has none of the bits 0x1E, so that adding does not reach bit 15.
                    wrong |= ~((word & 0x001E001E001E001EULL) + 0x7FFE7FFE7FFE7FFEULL) & 0x8000800080008000ULL
                    word = (word & 0x001F001F001F001FULL) << 6 | word >> 8 & 0x003F003F003F003FULL
                    memcpy(to, &word, 8)
                    some = 4 if wrong == 0 else __builtin_ctzll(wrong) >> 4
                    to += some
                    i += 2 * some
                    if some < 4:
                        break
            while i < n and 0x80 <= b[i] < 0xE0:
                if b[i] < 0xC2 or n - i < 2 or starts_character(data[i + 1]):
                    return False
                to[0] = <utf8_unit>((b[i] & 0x1F) << 6 | (b[i + 1] & 0x3F))
                to += 1
                i += 2
        elif c < 0xF0:
            while i < n and b[i] >> 4 == 0xE:
                if n - i < 3 or starts_character(data[i + 1]) or starts_character(data[i + 2]):
                    return False
                c = (b[i] & 0x0FU) << 12 | (b[i + 1] & 0x3FU) << 6 | (b[i + 2] & 0x3FU)
                if c < 0x800 or c - 0xD800 < 0x800:
                    return False
                to[0] = <utf8_unit>c
                to += 1
                i += 3
        else:
            if (
                n - i < 4
                or starts_character(data[i + 1])
                or starts_character(data[i + 2])
                or starts_character(data[i + 3])
            ):
                return False
            c = (c & 0x07) << 18 | (b[i + 1] & 0x3F) << 12 | (b[i + 2] & 0x3F) << 6 | (b[i + 3] & 0x3F)
            if not 0x10000 <= c < 0x110000:
                return False
            to[0] = <utf8_unit>c
            to += 1
            i += 4
    return True

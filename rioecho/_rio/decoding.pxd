# Making a str of the bytes of a text.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from rioecho._core.utf8 cimport UTF8_ASTRAL, UTF8_LAST, UTF8_WIDE, is_ascii, utf8_decode, utf8_measure


cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t n, Py_UCS4 highest)
    void *PyUnicode_DATA(object text)
    object PyUnicode_DecodeUTF8(const char *data, Py_ssize_t n, const char *errors)
    object PyUnicode_DecodeUTF8Stateful(const char *data, Py_ssize_t n, const char *errors, Py_ssize_t *used)
    object PyUnicode_DecodeLatin1(const char *data, Py_ssize_t n, const char *errors)
    object PyUnicode_DecodeASCII(const char *data, Py_ssize_t n, const char *errors)


cdef enum charset:
    UTF8
    LATIN1
    ASCII


cdef inline str decode_valid(const char *data, size_t n):
    """Decode a text in UTF-8 that is not ASCII. Returns None if it is not valid or not complete."""
    cdef uint8_t highest
    cdef size_t count = utf8_measure(data, n, &highest)
    cdef bint valid
    cdef object text
    if highest > UTF8_LAST:
        return None
    # Its highest byte starts its highest character, up to the bits of the width.
    if highest < UTF8_WIDE:
        text = PyUnicode_New(count, 0xFF)
        valid = utf8_decode(data, n, <uint8_t *>PyUnicode_DATA(text), count)
    elif highest < UTF8_ASTRAL:
        text = PyUnicode_New(count, 0xFFFF)
        valid = utf8_decode(data, n, <uint16_t *>PyUnicode_DATA(text), count)
    else:
        text = PyUnicode_New(count, 0x10FFFF)
        valid = utf8_decode(data, n, <uint32_t *>PyUnicode_DATA(text), count)
    return text if valid else None


cdef inline str decode_complete(const char *data, size_t n):
    """Decode a text in UTF-8. Returns None where this is left to CPython, which is slower with all that is short."""
    cdef object text
    if n <= 2:   # CPython has an object for each of the shortest
        return None
    if not is_ascii(data, n):
        return decode_valid(data, n)
    text = PyUnicode_New(n, 127)
    memcpy(PyUnicode_DATA(text), data, n)
    return text


cdef inline str decode(charset codec, const char *errors, const char *data, size_t n):
    """Decode a whole text; ``errors`` is the name of the error handler, NULL for "strict"."""
    cdef str text
    if codec == UTF8:
        text = decode_complete(data, n)
        return text if text is not None else PyUnicode_DecodeUTF8(data, n, errors)
    if codec == LATIN1:
        return PyUnicode_DecodeLatin1(data, n, errors)
    return PyUnicode_DecodeASCII(data, n, errors)


cdef inline str decode_begun(charset codec, const char *errors, const char *data, size_t n, Py_ssize_t *used):
    """Decode a text whose last character may be cut off by its end. Stores the number of bytes decoded."""
    cdef str text
    used[0] = n
    if codec != UTF8:
        return decode(codec, errors, data, n)
    text = decode_complete(data, n)
    return text if text is not None else PyUnicode_DecodeUTF8Stateful(data, n, errors, used)

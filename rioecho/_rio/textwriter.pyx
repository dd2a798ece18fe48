"""Writing text: the methods of class TextFile that take strings.

Text is written to the output buffer of the Rio in pieces of whole characters, each accepted as a whole or not at all,
so that an error can say how many characters were accepted.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memchr

from rioecho._core.characters cimport count_byte
from rioecho._core.utf8 cimport count_characters, starts_character
from rioecho._rio.channel cimport leave_writing
from rioecho._rio.decoding cimport LATIN1, UTF8
from rioecho._rio.input cimport enter
from rioecho._rio.textreader cimport TextReader, attached
from rioecho._rio.writer cimport Writer, note_written, put_at_once, put_each


cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyUnicode_IS_ASCII(object text)
    object PyUnicode_FromObject(object text)
    object PyUnicode_AsUTF8String(object text)
    object PyUnicode_AsLatin1String(object text)
    object PyUnicode_AsASCIIString(object text)


# The error handlers that encode any character, without calling Python code.
cdef tuple LENIENT = ("ignore", "replace", "backslashreplace", "xmlcharrefreplace")


cdef object put(object file, object text, size_t *taken):
    return (<TextWriter>file).put(text, taken)


cdef class TextWriter(TextReader):
    cdef int encode_as(self, str errors, object newline) except -1:
        """Set the error handler and the newlines, whose names the caller has checked."""
        self.errors = errors
        self.lenient = errors in LENIENT
        self.linesep = newline if newline in ("\r", "\r\n") else None
        return 0

    def write(self, text, /):
        """Write a string and return its length in characters.

        The text goes to the output buffer of the Rio, which is sent when it is full and as ``Rio.write()`` says.

        Raises ``UnicodeEncodeError`` before anything is written, ``TimeoutError``, ``BlockingIOError``,
        ``BrokenPipeError`` and any other ``OSError``. The error's ``characters_written`` is the number of characters
        that were accepted, sent or buffered; no character is accepted in part.
        """
        cdef size_t taken = 0
        try:
            return self.put(text, &taken)
        except BaseException as error:
            note_written(error, taken)
            raise

    def writelines(self, lines, /):
        """Write each of the strings in ``lines``, as ``write()`` does. No newline is added.

        The error's ``characters_written`` is the total number of characters accepted, over all strings.
        """
        self.check_open()
        put_each(self, lines, put)

    cdef object put(self, object text, size_t *taken):
        """Write a string and return its length. Counts the characters that were accepted in ``taken``."""
        cdef object length   # created before anything is accepted, because allocating an int can fail
        cdef Writer rio
        cdef Py_ssize_t n
        cdef const char *data
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        text = PyUnicode_FromObject(text)   # of a subclass, the string itself
        rio = attached(self)
        n = PyUnicode_GET_LENGTH(text)
        length = n
        data = <const char *>PyUnicode_DATA(text) if PyUnicode_IS_COMPACT_ASCII(text) else NULL
        if (
            data == NULL
            or (self.linesep is not None and memchr(data, c'\n', n) != NULL)
            or not put_at_once(rio, data, n)
        ):
            self.put_text(rio, text, taken)
        if self.line_buffering:
            taken[0] = n
            if "\n" in text or "\r" in text:
                rio.flush()
        return length

    cdef int put_text(self, Writer rio, str text, size_t *taken) except -1:
        """Write text through the output buffer. Counts the characters that were accepted in ``taken``."""
        cdef bytes data
        cdef list pieces = None
        cdef size_t size = rio.out.base
        cdef bint handled
        cdef Py_ssize_t at, n
        data = self.encode(text, False)
        if data is not None and put_at_once(rio, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)):
            return 0
        handled = data is None
        if handled and <size_t>len(text) <= size:
            data = self.encode(text, True)
        if data is not None and <size_t>PyBytes_GET_SIZE(data) <= size:
            pieces = [(data, len(text))]
        elif handled and not self.lenient:
            pieces = self.all_pieces(rio, text)   # the handler may refuse a character, or be Python code
        enter(rio, &rio.writing)
        try:
            if pieces is not None:
                for data, n in pieces:
                    self.put_piece(rio, data, n, taken)
            elif not handled:
                self.put_large(rio, data, text, taken)
            else:
                # A write that fails and is repeated must not encode all of the text each time.
                at = 0
                while at < len(text):
                    data = self.piece_at(rio, text, at, &n)
                    self.put_piece(rio, data, n, taken)
                    at += n
        finally:
            leave_writing(rio)
        return 0

    cdef int put_piece(self, Writer rio, bytes data, size_t length, size_t *taken) except -1:
        """Write the bytes of ``length`` characters, which fit in the output buffer."""
        cdef size_t n = PyBytes_GET_SIZE(data), sent = 0
        try:
            rio.put(PyBytes_AS_STRING(data), n, &sent)
        finally:
            if sent == n:
                taken[0] += length
        return 0

    cdef int put_large(self, Writer rio, bytes data, str text, size_t *taken) except -1:
        """Send text, encoded as ``data`` without an error handler, which the output buffer cannot hold, without a copy.

        If an error ends this in the middle of a character, the rest of the character is put into the buffer.
        """
        cdef const char *start = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data), sent = 0, end
        cdef bint utf8 = self.codec == UTF8 and not PyUnicode_IS_ASCII(text)
        cdef bint pairs = self.linesep is not None and len(self.linesep) == 2   # each newline is CRLF
        rio.reserve_output()
        try:
            rio.put(start, n, &sent)
        finally:
            if sent == n:
                taken[0] = PyUnicode_GET_LENGTH(text)
            elif sent:
                end = sent
                while utf8 and end < n and not starts_character(start[end]):
                    end += 1
                if pairs and end < n and start[end] == c'\n':
                    end += 1
                rio.keep_rest(start + sent, end - sent)
                taken[0] = count_characters(start, end) if utf8 else end
                if pairs:
                    taken[0] -= count_byte(start, end, c'\n')
        return 0

    cdef list all_pieces(self, Writer rio, str text):
        """Encode text in pieces that fit in the output buffer. Returns a list of (bytes, number of characters)."""
        cdef list pieces = []
        cdef Py_ssize_t at = 0, n
        while at < len(text):
            pieces.append((self.piece_at(rio, text, at, &n), n))
            at += n
        return pieces

    cdef bytes piece_at(self, Writer rio, str text, Py_ssize_t at, Py_ssize_t *length):
        """Encode as many characters from ``at`` as surely fit in the output buffer, and store their number."""
        cdef Py_ssize_t n = min(len(text) - at, max(<Py_ssize_t>rio.out.base // 16, 1)), i = n
        cdef bytes data
        while i and ord(text[at + i - 1]) >= 128:
            i -= 1   # an error handler is called for a run of characters, which is not to be cut
        n = i or n
        data = self.encode(text[at:at + n], True)
        while <size_t>PyBytes_GET_SIZE(data) > rio.out.base and n > 1:
            n //= 2
            data = self.encode(text[at:at + n], True)
        length[0] = n
        return data

    cdef bytes encode(self, str text, bint handled):
        """Encode text and translate its newlines. Unless ``handled``, return None where a handler would be called."""
        if self.linesep is not None and "\n" in text:
            text = text.replace("\n", self.linesep)
        try:
            if handled and self.handler != NULL:
                return text.encode(("utf-8", "latin-1", "ascii")[<int>self.codec], self.errors)
            if self.codec == UTF8:
                return PyUnicode_AsUTF8String(text)
            if self.codec == LATIN1:
                return PyUnicode_AsLatin1String(text)
            return PyUnicode_AsASCIIString(text)
        except UnicodeEncodeError:
            if handled or self.handler == NULL:
                raise
        return None

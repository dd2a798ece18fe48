"""Text files over a Rio: class TextFile, for ``rioecho.makefile``.

Reading is in _rio/textreader.pyx. Text is written to the output buffer of the Rio in pieces of whole characters, each
accepted as a whole or not at all, so that an error can say how many characters were accepted.
"""

import codecs
import io

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memchr

from rioecho._core.characters cimport count_byte
from rioecho._core.posix cimport rio_assert, rio_flag_closed, rio_size_get
from rioecho._core.utf8 cimport count_characters, starts_character
from rioecho._rio.channel cimport enter, leave_reading, leave_writing
from rioecho._rio.decoding cimport ASCII, LATIN1, UTF8, charset
from rioecho._rio.textreader cimport TextReader, attached
from rioecho._rio.writer cimport Writer, note_written, put_at_once


cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyUnicode_IS_ASCII(object text)
    object PyUnicode_FromObject(object text)
    object PyUnicode_AsUTF8String(object text)
    object PyUnicode_AsLatin1String(object text)
    object PyUnicode_AsASCIIString(object text)


# The encodings of TextFile, by the names that codecs.lookup() gives them.
cdef dict CHARSETS = {"utf-8": UTF8, "iso8859-1": LATIN1, "ascii": ASCII}
# The values of `newlines`, by the kinds of newlines that were read.
cdef tuple NEWLINES = (
    None, "\r", "\n", ("\r", "\n"), "\r\n", ("\r", "\r\n"), ("\n", "\r\n"), ("\r", "\n", "\r\n"),
)
cdef tuple NEWLINE_ARGUMENTS = (None, "", "\n", "\r", "\r\n")
cdef tuple HANDLERS = (
    "strict", "ignore", "replace", "backslashreplace", "surrogateescape", "surrogatepass", "xmlcharrefreplace",
    "namereplace",
)


@cython.final
cdef class TextFile(TextReader):
    """A text file over a ``Rio``, returned by ``rioecho.makefile`` for UTF-8, ASCII and Latin-1.

    It behaves like an ``io.TextIOWrapper``, except that it loses nothing:

    * After ``TimeoutError``, ``BlockingIOError``, ``MemoryError`` or an exception raised by a signal handler, all that
      was received is still readable, and the next call continues where this one stopped.
    * Reading is not disturbed by writing.
    * Text that ``write()`` has accepted is sent or in the output buffer. After a failed ``write()``, the error's
      ``characters_written`` is the number of characters of the text that were accepted; the others are the caller's.
    * A line that cannot be decoded raises ``UnicodeDecodeError``, again at each call, until it has been read as bytes
      through ``buffer``.

    ``buffer`` is the ``Rio``. It may be read and written between calls of the text file: no text is held back, except
    that a sized read may have cut the replacement for an invalid byte.
    """

    cdef dict __dict__
    cdef object __weakref__
    cdef readonly str encoding
    cdef readonly str errors
    cdef readonly bint line_buffering
    cdef readonly bint write_through
    cdef str linesep   # what "\n" is written as, or None for itself

    def __cinit__(self, Writer rio not None, charset codec, str encoding, str errors, object newline):
        rio_assert(rio.out.base >= 16)   # room for a character
        self.rio = rio
        self.encoding = encoding
        self.plain = True
        self.set_format(codec, errors, newline)

    cdef int set_format(self, charset codec, str errors, object newline) except -1:
        self.decode_as(codec, errors, newline)
        self.errors = errors
        self.linesep = newline if newline in ("\r", "\r\n") else None
        return 0

    def __repr__(self):
        shown = ""
        for attribute in ("name", "mode"):
            try:
                shown += f" {attribute}={getattr(self, attribute)!r}"
            except (AttributeError, ValueError):   # the socket's file has none, or has been detached
                pass
        return f"<rioecho.TextFile{shown} encoding={self.encoding!r}>"

    # ---- writing

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
        cdef size_t before = 0, taken = 0
        self.check_open()
        try:
            for line in lines:
                before += self.put(line, &taken)
                taken = 0
        except BaseException as error:
            note_written(error, before + taken)
            raise

    def flush(self):
        """Send the buffered output, as ``Rio.flush()`` does."""
        attached(self).flush()

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
        data = self.encode(text, False)
        if data is not None and put_at_once(rio, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)):
            return 0
        if data is None:
            data = self.encode(text, True)
            if <size_t>len(data) > rio.out.base:
                pieces = self.irregular_pieces(rio, text)
        enter(rio, &rio.writing)
        try:
            if pieces is not None:
                for data, length in pieces:
                    self.put_piece(rio, data, length, taken)
            elif <size_t>len(data) <= rio.out.base:
                self.put_piece(rio, data, len(text), taken)
            else:
                self.put_large(rio, data, text, taken)
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

    cdef list irregular_pieces(self, Writer rio, str text):
        """Encode text in pieces that fit in the output buffer. Returns a list of (bytes, number of characters)."""
        cdef list pieces = []
        cdef Py_ssize_t at = 0, n, i
        cdef bytes data
        while at < len(text):
            n = min(len(text) - at, <Py_ssize_t>rio.out.base // 4)
            i = n
            while i and ord(text[at + i - 1]) >= 128:
                i -= 1   # an error handler is called for a run of characters, which is not to be cut
            n = i or n
            data = self.encode(text[at:at + n], True)
            while <size_t>len(data) > rio.out.base and n > 1:
                n //= 2
                data = self.encode(text[at:at + n], True)
            pieces.append((data, n))
            at += n
        return pieces

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

    # ---- the Rio and its descriptor

    @property
    def buffer(self):
        """The ``Rio``; ``None`` after ``detach()``."""
        with cython.critical_section(self):   # another thread may be detaching it
            return self.rio

    def detach(self):
        """Flush the output and return the ``Rio``. The text file is unusable afterwards."""
        self.flush()
        with cython.critical_section(self):
            rio, self.rio = self.rio, None
        if rio is None:
            attached(self)
        return rio

    @property
    def name(self):
        """The name of ``buffer``."""
        return attached(self).name

    @property
    def closed(self):
        """Whether the Rio has been closed."""
        return attached(self).closed

    @property
    def newlines(self):
        """The kinds of newlines read so far: ``None``, a string, or a tuple of strings."""
        attached(self)
        return NEWLINES[rio_size_get(&self.seen)]

    def reconfigure(self, *, encoding=None, errors=None, newline=..., line_buffering=None, write_through=None):
        """Change the given properties, after a flush. Text that has not been read yet is decoded accordingly.

        Raises ``io.UnsupportedOperation`` for an encoding other than UTF-8, ASCII and Latin-1.
        """
        cdef Writer rio = attached(self)
        checked = io.TextIOWrapper(
            io.BytesIO(),
            self.encoding if encoding is None else encoding,
            (self.errors if encoding is None else "strict") if errors is None else errors,
            self.newline if newline is ... else newline,
        )
        codec = CHARSETS.get(codecs.lookup(checked.encoding).name)
        if codec is None:
            raise io.UnsupportedOperation(f"a socket's file cannot change to the encoding {checked.encoding}")
        buffered = self.line_buffering if line_buffering is None else bool(line_buffering)
        through = self.write_through if write_through is None else bool(write_through)
        rio.flush()
        enter(rio, &rio.reading)
        try:
            enter(rio, &rio.writing)
            try:
                self.set_format(codec, checked.errors, self.newline if newline is ... else newline)
                self.encoding = checked.encoding
                self.line_buffering = buffered
                self.write_through = through
            finally:
                leave_writing(rio)
        finally:
            leave_reading(rio)

    def fileno(self):
        """Return the file descriptor, an int, as ``Rio.fileno()`` does."""
        return attached(self).fileno()

    def isatty(self):
        """Report whether the descriptor is a terminal."""
        return attached(self).isatty()

    def readable(self):
        """Report whether the file was opened for reading."""
        return attached(self).readable()

    def writable(self):
        """Report whether the file was opened for writing."""
        return attached(self).writable()

    def seekable(self):
        """Return ``False``: a socket cannot seek."""
        return attached(self).seekable()

    cdef int check_open(self) except -1:
        cdef Writer rio = attached(self)
        if rio_flag_closed(&rio.reading):
            rio.refuse(&rio.reading)
        return 0

    # ---- closing

    def close(self):
        """Flush the output and close the Rio, as ``Rio.close()`` does."""
        attached(self).close()

    def __enter__(self):
        self.check_open()
        return self

    def __exit__(self, *_):
        self.close()

    # ---- operations that a stream does not support

    def seek(self, cookie, whence=0, /):
        """Raise ``io.UnsupportedOperation``."""
        self.check_open()
        raise io.UnsupportedOperation("underlying stream is not seekable")

    def tell(self):
        """Raise ``io.UnsupportedOperation``."""
        self.check_open()
        raise io.UnsupportedOperation("underlying stream is not seekable")

    def truncate(self, pos=None, /):
        """Raise ``io.UnsupportedOperation``."""
        self.flush()
        raise io.UnsupportedOperation("truncate")


io.TextIOBase.register(TextFile)


def open_text(Writer rio, encoding, errors, newline):
    """Return a ``TextFile`` or, for an encoding that it does not support, an ``io.TextIOWrapper`` over a Rio.

    The arguments are those of ``io.TextIOWrapper``, with "locale" for the encoding of the locale.
    """
    if (
        (errors is None or errors in HANDLERS)
        and newline in NEWLINE_ARGUMENTS
        and isinstance(encoding, str)
    ):
        name = locale_encoding() if encoding == "locale" else encoding
        codec = charset_of(name)
        if codec is not None:
            return TextFile(rio, codec, name, errors or "strict", newline)
        return io.TextIOWrapper(rio, encoding, errors, newline)
    wrapper = io.TextIOWrapper(rio, encoding, errors, newline)   # raises for a wrong argument
    codec = charset_of(wrapper.encoding)
    if codec is None:
        return wrapper
    name, errors = wrapper.encoding, wrapper.errors
    wrapper.detach()
    return TextFile(rio, codec, name, errors, newline)


cdef object charset_of(str encoding):
    """Return the charset of an encoding, or None if TextFile does not support it."""
    codec = CHARSETS.get(encoding)
    if codec is None:
        try:
            codec = CHARSETS.get(codecs.lookup(encoding).name)
        except (LookupError, ValueError):
            pass   # io.TextIOWrapper raises it, with the text that programs know
    return codec


cdef str locale_encoding():
    import locale   # imported when it is first needed: it is slower than importing this module
    return locale.getencoding()

"""Text files over a Rio: class TextFile, for ``rioecho.makefile``.

Reading is in _rio/textreader.pyx, writing in _rio/textwriter.pyx. This module has the rest of the class, and the choice
of the class for an encoding.
"""

import codecs
import io

cimport cython

from rioecho._core.posix cimport rio_assert, rio_size_get
from rioecho._rio.channel cimport leave_writing
from rioecho._rio.decoding cimport ASCII, LATIN1, UTF8, charset
from rioecho._rio.input cimport enter, leave_reading
from rioecho._rio.textreader cimport attached
from rioecho._rio.textwriter cimport TextWriter
from rioecho._rio.writer cimport Writer


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
cdef class TextFile(TextWriter):
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

    Two differences remain, because newlines are found in the bytes. A CR and an LF are two newlines if there are bytes
    between them, even if the error handler "ignore" drops these. A newline in the replacement of an error handler that
    was registered with ``codecs.register_error()`` is not translated, and a line need not end there.
    """

    cdef dict __dict__
    cdef object __weakref__
    cdef readonly str encoding
    cdef readonly bint write_through

    def __cinit__(self, Writer rio not None, charset codec, str encoding, str errors, object newline):
        rio_assert(rio.out.base >= 16)   # room for a character
        self.rio = rio
        self.encoding = encoding
        self.plain = True
        self.set_format(codec, errors, newline)

    cdef int set_format(self, charset codec, str errors, object newline) except -1:
        self.decode_as(codec, errors, newline)
        self.encode_as(errors, newline)
        return 0

    def __repr__(self):
        shown = ""
        for attribute in ("name", "mode"):
            try:
                shown += f" {attribute}={getattr(self, attribute)!r}"
            except (AttributeError, ValueError):   # the socket's file has none, or has been detached
                pass
        return f"<rioecho.TextFile{shown} encoding={self.encoding!r}>"

    # ---- the Rio and its descriptor

    def flush(self):
        """Send the buffered output, as ``Rio.flush()`` does."""
        attached(self).flush()

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

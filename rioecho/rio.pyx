"""Robust I/O on a POSIX file descriptor: class Rio (CS:APP 10.5).

This module has the constructor and the methods about the descriptor and closing. Reading is in _rio/lines.pyx and
_rio/reader.pyx, writing in _rio/writer.pyx, the time limits in _rio/limits.pyx. The book's
functions for Cython code, which are cimported from here, are in _rio/capi.pyx.
"""

import io
import os
import sys

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from cpython.object cimport PyObject
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport buffer_held, buffer_start
from rioecho._core.constructor cimport name_constructor
from rioecho._core.convert cimport check_source, descriptor_of, to_size
from rioecho._core.posix cimport rio_bool_get, rio_flag_busy, rio_flag_closed
from rioecho._rio.channel cimport AS_FILE, BORROWED, OWNED, leave_writing, ownership
from rioecho._rio.framing cimport to_line_limit
from rioecho._rio.input cimport leave_reading
from rioecho._rio.limits cimport ASK_CLOCK, rio_call
from rioecho._rio.output cimport NOTHING
from rioecho._rio.source cimport file_transport_of, transport_of
from rioecho._rio.writer cimport Writer

from rioecho._core.sources import timed_by
from rioecho.errors import ConcurrentCall


cdef extern from "Python.h":
    # Unlike the module warnings, it need not be imported, which would be too late when the interpreter exits.
    int PyErr_ResourceWarning(object source, Py_ssize_t stack_level, const char *format, ...) except -1


# Whether the io module reports an error of closing in a finalizer to sys.unraisablehook, or ignores it: for any file,
# and for one that only reads or only writes.
cdef bint FINALIZERS_TELL = sys.version_info >= (3, 13)
cdef bint FINALIZERS_OF_ONE_SIDE_TELL = FINALIZERS_TELL or sys.flags.dev_mode


# What Rio() takes in place of a descriptor to make a file of rioecho.makefile, which open_file() then opens.
cdef object SOCKET_FILE = object()


cdef size_t buffer_size(object n) except 0:
    cdef size_t size = to_size(n, "bufsize")
    if size == 0:
        raise ValueError("bufsize must be at least 1")
    return size


@cython.final
cdef class Rio(Writer):
    # inspect.signature() reads the signature of a class in C from the first two lines of the docstring.
    """Rio(fd, *, bufsize=65536, timeout=..., idle_timeout=None, max_line=1048576, wake_fd=None, closefd=False)\n--\n
    A buffered reader and writer over a POSIX file descriptor that never loses a byte, whatever interrupts it.

    Read
        a line: ``readline()``, iteration; all lines that have come: ``readlines1()``; through a separator:
        ``readuntil()``; a length and its payload: ``readframe()``; several of these or nothing: ``with rio.frame()``;
        n bytes: ``read()``, ``readexactly()``, ``readinto()``; what has come: ``read1()``, ``readinto1()``.
    Look, skip, put back
        ``peek()``, ``fill()``, ``has_line()``, ``buffered``, ``read_buffered()``; ``skip()``, ``skipline()``;
        ``unread()``.
    Write
        all of it now: ``writen()``; buffered: ``write()``, ``writelines()``, ``flush()``; the end: ``write_eof()``.
    End
        ``close()``, ``with rio``; to take the descriptor and the bytes held elsewhere: ``detach()``.

    ``fd``
        An int, or an object with ``fileno()`` (a socket, a pipe, a file, a terminal), which is kept alive. An object
        that moves its bytes itself is used through its own methods: an ``ssl.SSLSocket``, a subclass of
        ``socket.socket`` that overrides ``recv``, ``recv_into`` or ``send``, a socket of gevent or eventlet, a
        ``paramiko.Channel``, a ``Connection`` of pyOpenSSL, anything with ``recv`` or ``recv_into`` and ``send``. It
        waits by its own ``settimeout()``, and its own timeout is put back; without that method, a timeout is a
        ``ValueError``. If such methods are written in Python, a signal handler that raises inside them can lose the
        bytes that they have taken and not yet returned; a Rio cannot know those.
        A file object with a buffer, and another Rio, is flushed, and accepted if it can then be shown to hold nothing.
        A socket that carries packets, and an object that carries messages, is a ``TypeError``.
    ``bufsize``
        The size in bytes of each of the two buffers, one for input and one for output. Each is allocated at first use.
        With 1, nothing behind what the caller wants is read from the descriptor.
    ``timeout``
        The time in seconds that one call may take as a whole, on the monotonic clock. A call with timeout 0 does not
        block; ``None`` waits without limit. The default is the ``gettimeout()`` of the socket, or of the one below a
        file of a socket, at the time of construction; that of another Rio; for any other socket, ``SO_RCVTIMEO`` for
        reading and ``SO_SNDTIMEO`` for writing if they are set then; and ``None`` for anything else.
    ``idle_timeout``
        The time in seconds in which at least one byte must come, for a call that reads, or go, for one that writes;
        ``None`` for no limit. Whichever of ``timeout`` and ``idle_timeout`` is over first ends the call.
    ``max_line``
        The maximum length in bytes of a line or frame that ends in a separator, including the separator; ``None`` for
        no limit.
    ``wake_fd``
        A descriptor of the caller's, or an object with ``fileno()``, which is kept alive: an eventfd, the end of a
        pipe. While it is readable, or hung up, a call that would have to wait raises ``Woken`` instead, and nothing is
        lost. It is not read from: drain it before the next call. With timeout 0 a call raises ``BlockingIOError`` all
        the same. A source that waits itself is left after at most 20 ms; without ``settimeout()`` it is a
        ``ValueError``.
    ``closefd``
        Whether this Rio owns ``fd`` and closes it in ``close()``. By default the caller owns it.

    After ``TimeoutError``, ``BlockingIOError``, ``Woken``, ``LineTooLong``, ``MemoryError`` or an exception raised by a
    signal handler, every byte received is still readable, in order, and the next call continues where this one stopped.
    Over TLS there is one exception: if a signal handler raises in the moment in which a record of a single byte has
    been decrypted, and that byte is 0xC1 (which UTF-8 does not contain), it is lost, because the ssl module then does
    not tell that it has read anything.

    ``ConnectionResetError`` is raised once, after the whole lines, or the bytes asked for, that had come. The bytes
    that came before it can still be read, and then the input is at its end: a last line without a newline, or what
    ``read()`` returns, is then cut, not whole. Do not repeat the call; close the connection.

    One reader and one writer may use a Rio at the same time, in two threads. A second call on the same side raises
    ``ConcurrentCall`` and has no effect.

    Buffered output is sent before a read blocks, when the buffer is full, and by ``writen()``, ``flush()`` and
    ``close()``. A Rio never raises SIGPIPE; a broken pipe is ``BrokenPipeError``.

    A terminal ends with a hang-up, or ^D in canonical mode; a read of 0 bytes because of ``VMIN=0`` is no end, and
    neither is one from a FIFO that has not been opened for writing yet. A file that is open for reading and writing has
    one position, as with ``io.BufferedRandom``: a write goes, at once, where the caller has read to.
    """

    def __cinit__(
        self,
        fd,
        *,
        bufsize=65536,
        timeout=...,
        idle_timeout=None,
        max_line=1 << 20,
        wake_fd=None,
        closefd=False,
    ):
        cdef size_t size, longest
        if fd is SOCKET_FILE:
            return
        size = buffer_size(bufsize)
        longest = to_line_limit(max_line)
        self.transport = transport_of(fd)
        if timeout is not ...:
            self.timeout_ns = self.time_limit(timeout)
        if idle_timeout is not None:
            self.idle_ns = self.idle_limit(idle_timeout)
        self.open(fd, -1 if self.waits() else descriptor_of(fd), size, longest)
        if timeout is ...:
            self.inherit_timeout(None if isinstance(fd, int) else timed_by(fd))
        if wake_fd is not None:
            self.wake_by(wake_fd)
        if closefd:
            if not isinstance(fd, int) and not hasattr(fd, "close"):
                raise TypeError("closefd=True needs a descriptor, or an object that can be closed")
            self.own = OWNED

    cdef int open_file(self, object sock, object raw, size_t size, bint reading, bint writing) except -1:
        """Become a file of a socket, with the life time and the timeout of the standard library's."""
        self.transport = file_transport_of(sock, reading, writing)
        self.open(raw, -1 if self.waits() else sock.fileno(), size, SIZE_MAX)
        self.clock = sock   # settimeout() after makefile() takes effect, as it does with socket.makefile()
        self.timeout_ns = ASK_CLOCK
        self.can_read = reading
        self.can_write = self.takes_output = writing
        self.raw = raw
        self.own = AS_FILE
        self.brief = True   # http.client makes a file for each response
        return 0

    cdef bint waits(self) noexcept:
        """Report whether the source waits itself, so that its descriptor, if it has one, is not used."""
        return self.transport is not None and self.transport.waits

    def __repr__(self):
        if rio_flag_closed(&self.reading):
            return "<rioecho.Rio closed>"
        if self.f.fd < 0:
            with cython.critical_section(self):   # another thread may be closing
                source = self.source
            return f"<rioecho.Rio over {source!r}>"
        return f"<rioecho.Rio fd={self.f.fd}>"

    # ---- the descriptor

    def fileno(self):
        """Return the file descriptor, an int.

        Raises ``ValueError`` if the Rio is closed, ``OSError`` (EBADF) if the socket or file that it was made for has
        been closed, and ``io.UnsupportedOperation`` if that is an object without ``fileno()``.
        """
        self.check_open()
        with cython.critical_section(self):   # another thread may be closing
            source = self.source
        if source is None:   # another thread has just closed it
            self.check_open()
        if self.f.fd < 0:
            return source.fileno() if hasattr(source, "fileno") else self.no_descriptor()
        check_source(source, self.f.fd)
        return self.f.fd

    cdef object no_descriptor(self):
        raise io.UnsupportedOperation("fileno: the source of this Rio has no file descriptor")

    def isatty(self):
        """Report whether the descriptor is a terminal. Raises the errors of ``fileno()``."""
        if self.f.fd < 0:
            self.check_open()
            return False
        return os.isatty(self.fileno())

    def readable(self):
        """Report whether the descriptor is open for reading. Raises ``ValueError`` if the Rio is closed."""
        self.check_open()
        return bool(self.can_read)

    def writable(self):
        """Report whether the descriptor is open for writing. Raises ``ValueError`` if the Rio is closed."""
        self.check_open()
        return bool(self.can_write)

    def seekable(self):
        """Return ``False``: a Rio is a stream. Raises ``ValueError`` if it is closed."""
        self.check_open()
        return False

    @property
    def closed(self):
        """Whether the Rio has been closed or detached."""
        return bool(rio_flag_closed(&self.reading) or self.raw_closed())

    # ---- of a file of makefile()

    @property
    def raw(self):
        """The ``socket.SocketIO`` under a file of ``rioecho.makefile``; ``raw._sock`` is the socket.

        ``raw``, ``mode`` and ``name`` are what the standard library's files have: only those that read or that write,
        not those that do both. On any other Rio they raise ``AttributeError``, after ``detach()`` ``ValueError``.
        """
        return self.get_raw("raw")

    @property
    def mode(self):
        """The mode of a file of ``rioecho.makefile``: ``"rb"`` or ``"wb"``; see ``raw``."""
        return self.get_raw("mode").mode

    @property
    def name(self):
        """The descriptor of a file of ``rioecho.makefile``, -1 if it has been closed; see ``raw``."""
        return self.get_raw("name").name

    cdef object get_raw(self, str attribute):
        if self.own != AS_FILE or self.can_read == self.can_write:
            raise AttributeError(f"this Rio has no {attribute}", name=attribute, obj=self)
        with cython.critical_section(self):   # another thread may be detaching
            raw = self.raw
        if raw is None:
            raise ValueError("raw stream has been detached")
        return raw

    # ---- closing

    def close(self):
        """Flush the output and close the Rio, and the descriptor if the Rio owns it.

        Closing a closed Rio has no effect. The errors of ``flush()`` are raised after everything has been closed, and
        the unsent output is lost; to be able to retry, call ``flush()`` first. Unread input is discarded.

        Raises ``ConcurrentCall``, and closes nothing, while another call reads or writes; a file of
        ``rioecho.makefile`` sends its output and waits until that call of another thread has ended. To make a blocked
        call in another thread return, shut down the socket.
        """
        cdef object failed = None
        if self.own == AS_FILE and rio_flag_busy(&self.reading):
            try:
                self.flush_first()
            except Exception as error:   # a source may raise any
                failed = error
        if not self.enter_both():
            return
        try:
            if failed is not None:
                raise failed
            # If the transport is lost, it and the output are the parent's; if `raw` is closed, there is nobody to send.
            if may_have_output(self) and not self.raw_closed():
                if self.transport is None or not self.transport.lost():
                    self.flush_held()
        finally:
            self.disown()

    cdef int flush_first(self) except -1:
        """Send buffered output before ``close()`` waits for a reader, which may be waiting for the answer to it."""
        if self.take_in_turn(&self.writing):
            try:
                self.flush_held()
            finally:
                leave_writing(self)
        return 0

    def detach(self):
        """Flush the output and close the Rio without closing the descriptor.

        Returns ``(fd, data)``: ``fd`` as it was passed to the constructor, and the bytes received that have not been
        read. The caller owns both. If flushing raises, the Rio stays open and keeps its unread and its unsent bytes.

        Raises the errors of ``flush()``, ``ConcurrentCall`` while another call reads or writes, and ``ValueError`` if
        the Rio is closed.
        """
        if not self.enter_both():
            self.refuse(&self.reading)
        try:
            self.flush_held()
            result = self.source, PyBytes_FromStringAndSize(buffer_start(&self.inp), buffer_held(&self.inp))
        except BaseException:
            leave_writing(self)
            leave_reading(self)
            raise
        self.forget()
        with cython.critical_section(self):
            self.raw = None
        return result

    cdef int flush_held(self) except -1:
        """Send the buffered output, for a caller that has entered both sides."""
        cdef rio_call call
        if not may_have_output(self):
            return 0
        self.start_writing(&call, ...)
        self.raise_kept(&call)
        self.push(&call, NOTHING)
        return 0

    cdef int disown(self) except -1:
        """Close both sides, which the caller has entered, and the descriptor if the Rio owns it."""
        cdef ownership own = self.own
        source = self.forget()
        if own == BORROWED:
            return 0
        if isinstance(source, int):
            os.close(source)
        else:
            source.close()
        return 0

    def __enter__(self):
        self.check_open()
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        """Close the descriptor if the Rio owns it, without flushing, and issue a ``ResourceWarning``.

        A Rio that does not own it issues the warning only if it has unsent output, and closes nothing.

        A file of ``rioecho.makefile`` is flushed and closed without a warning, as the standard library's.

        Has no effect on a closed or detached Rio, nor, if called by name, while another call reads or writes: a
        finalizer has no caller that could handle an exception.
        """
        if rio_flag_closed(&self.reading):
            return
        if self.own == BORROWED:
            if buffer_held(&self.out) and not rio_flag_busy(&self.writing):
                PyErr_ResourceWarning(self, 1, "the unsent output of %R is lost", <PyObject *>self)
            return
        if self.own == AS_FILE:
            try:
                self.close()
            except ConcurrentCall:
                pass
            except Exception as error:
                if FINALIZERS_TELL or (FINALIZERS_OF_ONE_SIDE_TELL and self.can_read != self.can_write):
                    PyErr_SetObject(type(error), error)
                    PyErr_WriteUnraisable(self)
            return
        try:
            if not self.enter_both():
                return
        except ConcurrentCall:
            return
        try:
            PyErr_ResourceWarning(self, 1, "unclosed %R: closed, its output not flushed", <PyObject *>self)
        finally:
            self.disown()

    # ---- methods of io.BufferedIOBase that a stream does not support

    def seek(self, offset, whence=0, /):
        """Raise ``io.UnsupportedOperation``."""
        raise io.UnsupportedOperation("a Rio is a stream and cannot seek")

    def tell(self):
        """Raise ``io.UnsupportedOperation``."""
        raise io.UnsupportedOperation("a Rio is a stream and has no position")

    def truncate(self, size=None, /):
        """Raise ``io.UnsupportedOperation``."""
        raise io.UnsupportedOperation("a Rio is a stream and cannot be truncated")


name_constructor(Rio)


cdef inline bint may_have_output(Rio self) noexcept:
    """Report whether closing has anything to send, or an error to raise, for a caller that has entered both sides."""
    if buffer_held(&self.out) != 0 or self.out_error is not None:
        return True
    return self.transport is not None and rio_bool_get(&self.transport.half_sent)


io.BufferedIOBase.register(Rio)


def _socket_file(sock, raw, bufsize, bint reading, bint writing, /):
    """Return a Rio that behaves like the standard library's socket files, for ``rioecho.makefile``.

    It owns ``raw``, the ``socket.SocketIO`` that counts as an open file of ``sock``.
    """
    cdef size_t size = buffer_size(bufsize)
    cdef Rio rio = Rio.__new__(Rio, SOCKET_FILE)   # without the general constructor, which takes longer than the rest
    rio.open_file(sock, raw, size, reading, writing)
    return rio

"""Robust I/O on a POSIX file descriptor: class Rio (CS:APP 10.5).

This module has the constructor and the methods that write and close. Reading is in _rio/lines.pyx and _rio/reader.pyx,
sending in _rio/output.pyx. The book's functions for Cython code, which are cimported from here, are in _rio/capi.pyx.
"""

import io
import os
import warnings

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport SIZE_MAX, int64_t

from rioecho._core.buffer cimport buffer_held, buffer_put, buffer_room, buffer_start
from rioecho._core.convert cimport check_source, to_nanoseconds, to_size
from rioecho._core.posix cimport (
    rio_flag_closed,
    rio_flag_put_briefly,
    rio_flag_take_briefly,
    rio_time_get,
    rio_time_set,
)
from rioecho._rio.channel cimport (
    AS_FILE,
    ASK_CLOCK,
    BORROWED,
    OWNED,
    enter,
    leave_reading,
    leave_writing,
    ownership,
    rio_call,
)
from rioecho._rio.lines cimport LineReader
from rioecho._rio.output cimport NOTHING
from rioecho._rio.source cimport transport_of
from rioecho._rio.transport cimport Transport

from rioecho.errors import ConcurrentCall


cdef int note_written(object error, size_t n) except -1:
    """Set the error's ``characters_written`` to the number of the caller's bytes that were sent or buffered."""
    try:
        error.characters_written = n
    except (AttributeError, TypeError):
        pass   # an exception raised by a signal handler, whose class allows no attributes
    return 0


cdef int get_bytes(object data, Py_buffer *view) except -1:
    """Store the memory of a bytes-like object in ``view``. The caller releases it."""
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except BufferError as error:
        raise TypeError(f"a contiguous bytes-like object is required: {error}") from None
    return 0


@cython.final
cdef class Rio(LineReader):
    # inspect.signature() reads the signature of a class in C from the first two lines of the docstring.
    """Rio(fd, *, bufsize=65536, timeout=..., max_line=1048576, closefd=False)\n--\n
    A buffered reader and writer over a POSIX file descriptor that never loses a byte, whatever interrupts it.

    ``fd``
        An int, or an object with ``fileno()`` (a socket, a pipe, a file, a terminal), which is kept alive. An
        ``ssl.SSLSocket`` is read and written through its own methods.
    ``bufsize``
        The size in bytes of each of the two buffers, one for input and one for output. Each is allocated at first use.
    ``timeout``
        The time in seconds that one call may take as a whole, on the monotonic clock. A call with timeout 0 does not
        block; ``None`` waits without limit. The default is the socket's ``gettimeout()`` at the time of construction,
        and ``None`` for anything but a Python socket.
    ``max_line``
        The maximum length in bytes of a line or frame that ends in a separator, including the separator; ``None`` for
        no limit.
    ``closefd``
        Whether this Rio owns ``fd`` and closes it in ``close()``. By default the caller owns it.

    After ``TimeoutError``, ``BlockingIOError``, ``LineTooLong``, ``MemoryError`` or an exception raised by a signal
    handler, every byte received is still readable, in order, and the next call continues where this one stopped.

    One reader and one writer may use a Rio at the same time, in two threads. A second call on the same side raises
    ``ConcurrentCall`` and has no effect.

    Buffered output is sent before a read blocks, when the buffer is full, and by ``writen()``, ``flush()`` and
    ``close()``. A Rio never raises SIGPIPE; a broken pipe is ``BrokenPipeError``.
    """

    def __cinit__(self, fd, *, bufsize=65536, timeout=..., max_line=1 << 20, closefd=False):
        cdef size_t size = to_size(bufsize, "bufsize")
        cdef size_t longest = SIZE_MAX if max_line is None else to_size(max_line, "max_line")
        if size == 0 or longest == 0:
            raise ValueError("bufsize and max_line must be at least 1")
        self.timeout_ns = -1
        if timeout is not ...:
            self.timeout_ns = to_nanoseconds(timeout)
        self.open(fd, size, longest)
        self.transport = transport_of(fd)
        if timeout is ... and hasattr(fd, "gettimeout"):
            self.timeout_ns = to_nanoseconds(self.timeout_of(fd))
        if closefd:
            if not isinstance(fd, int) and not hasattr(fd, "close"):
                raise TypeError("closefd=True needs a descriptor, or an object that can be closed")
            self.own = OWNED

    def __repr__(self):
        if rio_flag_closed(&self.reading):
            return "<rioecho.Rio closed>"
        return f"<rioecho.Rio fd={self.f.fd}>"

    # ---- writing

    def writen(self, data, *, timeout=...):
        """Send the buffered output, then all of ``data`` (CS:APP 10.5.1, ``rio_writen``).

        Returns the length of ``data`` in bytes, after all of it has been passed to the kernel.

        Raises ``TimeoutError`` (``BlockingIOError`` if the timeout is 0), ``BrokenPipeError`` and any other
        ``OSError``. The error's ``characters_written`` is the number of bytes of ``data`` that were sent. The others
        are the caller's: none of them is kept in the buffer, and
        ``rio.writen(data[error.characters_written:])`` continues.
        """
        cdef Py_buffer view
        cdef rio_call call
        cdef size_t n, sent = 0, size = self.out.base
        cdef object length   # created before anything is sent, because allocating an int can fail
        cdef bint joined = False
        get_bytes(data, &view)
        try:
            n = view.len
            length = view.len
            enter(self, &self.writing)
            try:
                self.begin_writing(&call, timeout)
                if 0 < n <= size and self.has_unsent(&call, NOTHING) and not self.has_unsent(&call, size - n):
                    self.hold_output(&call, <char *>view.buf, n)   # one send for both
                    joined = True
                    self.push(&call, NOTHING)
                else:
                    self.push(&call, NOTHING)
                    self.send_all(&call, <char *>view.buf, n, &sent)
                    self.push(&call, NOTHING)   # OpenSSL may have sent only a part of the last TLS record
                PyErr_CheckSignals()   # here an exception of a handler still gets its `characters_written`
            except BaseException as error:
                if joined:
                    sent = n - self.take_back(n)
                note_written(error, sent)
                raise
            finally:
                leave_writing(self)
        finally:
            PyBuffer_Release(&view)
        return length

    def write(self, data):
        """Write ``data`` to the output buffer and return its length in bytes.

        The buffer is sent when it is full. If ``data`` is longer than ``bufsize`` bytes, the buffered output and then
        ``data`` are sent at once, without a copy. The time limit is the ``timeout`` of the Rio.

        Raises the errors of ``writen()``. The error's ``characters_written`` is the number of bytes of ``data`` that
        were accepted, sent or buffered; the others are the caller's. An error that a read met while it sent buffered
        output is raised here, once.
        """
        cdef size_t taken = 0
        cdef object length   # as in writen()
        try:
            if PyBytes_CheckExact(data):
                length = PyBytes_GET_SIZE(data)
                if self.put_at_once(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)):
                    return length
            return self.put_object(data, &taken)
        except BaseException as error:
            note_written(error, taken)
            raise

    def writelines(self, lines, /):
        """Write each of the bytes-like objects in ``lines``, as ``write()`` does. No newline is added.

        The error's ``characters_written`` is the total number of bytes accepted, over all objects.
        """
        cdef size_t before = 0, taken = 0
        self.check_open()
        try:
            for line in lines:
                self.put_object(line, &taken)
                before += taken
                taken = 0
        except BaseException as error:
            note_written(error, before + taken)
            raise

    def flush(self, *, timeout=...):
        """Send the buffered output.

        Raises the errors of ``writen()``. After an error the unsent bytes are still in the buffer, and another
        ``flush()`` continues. An error that a read met while it sent buffered output is raised here, once.
        """
        cdef rio_call call
        enter(self, &self.writing)
        try:
            self.start(&call, timeout)
            self.raise_kept(&call)
            self.push(&call, NOTHING)
        finally:
            leave_writing(self)

    cdef int begin_writing(self, rio_call *call, object timeout) except -1:
        if not self.can_write:
            raise io.UnsupportedOperation("this Rio is not writable: its descriptor is open for reading only")
        self.start(call, timeout)
        self.raise_kept(call)
        return 0

    cdef object put_object(self, object data, size_t *taken):
        """Write an object's bytes through the buffer and return their number. Counts accepted bytes in ``taken``."""
        cdef Py_buffer view
        cdef object length   # as in writen()
        get_bytes(data, &view)
        try:
            length = view.len
            enter(self, &self.writing)
            try:
                self.put(<char *>view.buf, view.len, taken)
            finally:
                leave_writing(self)
            return length
        finally:
            PyBuffer_Release(&view)

    cdef bint put_at_once(self, const char *data, size_t n) noexcept:
        """Copy ``data`` to the buffer if that is all that ``put()`` would do: no allocation, no error, no system call.

        Reports whether it was; if not, nothing has changed.
        """
        cdef bint done = False
        if rio_flag_take_briefly(&self.writing):
            if rio_flag_take_briefly(&self.sending):
                if buffer_held(&self.out) == 0:
                    self.out.r = self.out.w = 0
                if (
                    0 < n <= buffer_room(&self.out)
                    and buffer_held(&self.out) + n < self.out.base
                    and self.out_error is None
                    and self.can_write
                ):
                    buffer_put(&self.out, data, n)
                    done = True
                rio_flag_put_briefly(&self.sending)
            rio_flag_put_briefly(&self.writing)
        return done

    cdef int put(self, const char *data, size_t n, size_t *taken) except -1:
        """Write n bytes through the buffer. Counts the bytes that were sent or buffered in ``taken``."""
        cdef rio_call call
        cdef size_t size = self.out.base
        self.begin_writing(&call, ...)
        if n > size:
            self.push(&call, NOTHING)
            self.send_all(&call, data, n, taken)
        elif n:
            self.push(&call, size - n)
            self.hold_output(&call, data, n)
            taken[0] = n
            if self.has_unsent(&call, size - 1):
                check_source(self.source, self.f.fd)
                self.tied_flush()   # the buffer is full: send what can be sent without blocking
        return 0

    # ---- the descriptor

    def fileno(self):
        """Return the file descriptor, an int.

        Raises ``ValueError`` if the Rio is closed, and ``OSError`` (EBADF) if the socket or file that it was made for
        has been closed.
        """
        self.check_open()
        with cython.critical_section(self):   # another thread may be closing
            source = self.source
        if source is None:   # another thread has just closed it
            self.check_open()
        check_source(source, self.f.fd)
        return self.f.fd

    def isatty(self):
        """Report whether the descriptor is a terminal. Raises the errors of ``fileno()``."""
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
        return bool(rio_flag_closed(&self.reading))

    @property
    def timeout(self):
        """The default time limit of one call in seconds; ``None`` for no limit. It can be set.

        The ``timeout`` argument of a method takes precedence.
        """
        cdef int64_t ns = rio_time_get(&self.timeout_ns)
        cdef Transport transport
        if ns == ASK_CLOCK:
            with cython.critical_section(self):   # another thread may be closing
                clock, transport = self.clock, self.transport
            if clock is not None:
                return clock.gettimeout() if transport is None else transport.timeout()
        return None if ns < 0 else ns / 1e9

    @timeout.setter
    def timeout(self, seconds):
        rio_time_set(&self.timeout_ns, to_nanoseconds(seconds))

    @property
    def max_line(self):
        """The maximum length of a line in bytes, including the newline; ``None`` for no limit."""
        return None if self.line_limit == SIZE_MAX else self.line_limit

    cdef int check_open(self) except -1:
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return 0

    # ---- closing

    def close(self):
        """Flush the output and close the Rio, and the descriptor if the Rio owns it.

        Closing a closed Rio has no effect. The errors of ``flush()`` are raised after everything has been closed, and
        the unsent output is lost; to be able to retry, call ``flush()`` first. Unread input is discarded.

        Raises ``ConcurrentCall``, and closes nothing, while another call reads or writes. To make a blocked call in
        another thread return, shut down the socket.
        """
        if not self.enter_both():
            return
        try:
            if self.transport is None or not self.transport.lost():   # else it and its output are the parent's
                self.flush_held()
        finally:
            self.disown()

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
        return result

    cdef int flush_held(self) except -1:
        """Send the buffered output, for a caller that has entered both sides."""
        cdef rio_call call
        if buffer_held(&self.out) == 0 and self.out_error is None and self.transport is None:
            return 0
        self.start(&call, ...)
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

        Has no effect on a closed or detached Rio, nor, if called by name, while another call reads or writes: a
        finalizer has no caller that could handle an exception.
        """
        if self.own == BORROWED:
            return
        try:
            if self.own == AS_FILE:
                self.close()
                return
            if not self.enter_both():
                return
        except (OSError, ValueError, ConcurrentCall):
            return   # the io module ignores errors of closing in a finalizer too
        try:
            warnings.warn(f"unclosed {self!r}: closed, its output not flushed", ResourceWarning, 1, self)
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


io.BufferedIOBase.register(Rio)


def _socket_file(sock, raw, bufsize):
    """Return a Rio that behaves like the standard library's socket files, for ``rioecho.makefile``.

    It owns ``raw``, the ``socket.SocketIO`` that counts as an open file of ``sock``.
    """
    cdef Rio rio = Rio(raw, bufsize=bufsize, timeout=None, max_line=None)
    rio.own = AS_FILE
    rio.brief = True   # http.client makes a file for each response
    rio.clock = sock   # settimeout() after makefile() takes effect, as it does with socket.makefile()
    rio.timeout_ns = ASK_CLOCK
    rio.can_read = raw.readable()
    rio.can_write = raw.writable()
    rio.transport = transport_of(sock)
    return rio

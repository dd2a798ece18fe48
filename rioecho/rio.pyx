"""Robust I/O on a POSIX descriptor: class Rio (CS:APP 10.5).

Here is what a user meets: making a Rio, writing, closing. Reading is in _rio/lines.pyx and _rio/reader.pyx, sending in
_rio/output.pyx; the book's functions at C level, which can be cimported from here, are in _rio/capi.pyx.
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
from rioecho._rio.tls cimport Tls, tls_of

from rioecho.errors import ConcurrentCall


cdef int note_written(object error, size_t n) except -1:
    """Say on the error how many of the caller's bytes were taken."""
    try:
        error.characters_written = n
    except (AttributeError, TypeError):
        pass   # an exception of a signal handler's that takes no attributes
    return 0


cdef int get_bytes(object data, Py_buffer *view) except -1:
    """The memory of a bytes-like object, to be released."""
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except BufferError as error:
        raise TypeError(f"a contiguous bytes-like object is required: {error}") from None
    return 0


@cython.final
cdef class Rio(LineReader):
    # The first two lines are for inspect.signature(), which finds them in no other place.
    """Rio(fd, *, bufsize=65536, timeout=..., max_line=1048576, closefd=False)\n--\n
    A buffered reader and writer over a POSIX descriptor that never loses a byte, whatever interrupts it.

    fd: an int, or an object with fileno() (a socket, a pipe's end, a file, a terminal); the object is kept alive. An
        ssl.SSLSocket is read and written through itself.
    bufsize: bytes for each direction's buffer, taken at first use.
    timeout: seconds for one whole call, on the monotonic clock; 0 never waits, None waits for ever. Left out, it is
        the gettimeout() of a Python socket at this moment, and None for all else.
    max_line: the longest line, newline included, that readline() and its like return; None for no limit.
    closefd: close fd with this Rio.

    After TimeoutError, BlockingIOError, LineTooLong, a signal handler that raises, or MemoryError, all that was
    received can still be read, and the next call goes on. One reader and one writer may work at the same time, in two
    threads; another call of the same side raises ConcurrentCall. Output is sent when a read has to wait, when the
    buffer is full, and at writen(), flush() and close().
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
        self.tls = tls_of(fd)
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
        """Send what is buffered, then all of data, now (RIO's rio_writen, CS:APP 10.5.1). Returns data's length.

        If this raises, the first `characters_written` bytes of data were sent and the rest is the caller's: nothing
        of it is kept, and `rio.writen(data[error.characters_written:])` goes on. TimeoutError, BlockingIOError,
        BrokenPipeError and the rest of the OSError family; never SIGPIPE.
        """
        cdef Py_buffer view
        cdef rio_call call
        cdef size_t n, sent = 0, size = self.out.base
        cdef object length   # made before anything is sent: an int needs memory, too
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
                    self.push(&call, NOTHING)   # a TLS record may be half-way out
                PyErr_CheckSignals()   # what a handler raises now, we can still say the count with
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
        """Write data through the output buffer; more than bufsize bytes go straight through. Returns data's length.

        If this raises, `characters_written` bytes of data were taken (sent or buffered) and the rest is the caller's.
        The time it may wait is the Rio's timeout.
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
        """Write each of the bytes-like objects, as write() does.

        If this raises, `characters_written` bytes of all of them together were taken.
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
        """Send what is buffered. If this raises, what was not sent is still buffered, and flush() goes on."""
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
        """Write an object's bytes through the buffer: their number. `taken` counts those that are sent or buffered."""
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
        """Do what put() does if all it has to do is to copy: no error is possible, nothing to make room for or to
        send. False, and nothing done, where it is more than that.
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
        """Write n bytes through the buffer; `taken` counts those that are sent or buffered."""
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
                self.tied_flush()   # full: out with it, as far as that needs no waiting
        return 0

    # ---- the descriptor

    def fileno(self):
        """The descriptor."""
        self.check_open()
        with cython.critical_section(self):   # another thread may be closing
            source = self.source
        if source is None:   # it was closed just now
            self.check_open()
        check_source(source, self.f.fd)
        return self.f.fd

    def isatty(self):
        """Is it a terminal?"""
        return os.isatty(self.fileno())

    def readable(self):
        """Is it open for reading?"""
        self.check_open()
        return bool(self.can_read)

    def writable(self):
        """Is it open for writing?"""
        self.check_open()
        return bool(self.can_write)

    def seekable(self):
        """A Rio is a stream: always False."""
        self.check_open()
        return False

    @property
    def closed(self):
        """Has it been closed or detached?"""
        return bool(rio_flag_closed(&self.reading))

    @property
    def timeout(self):
        """Seconds that one call may take if it says nothing else; None: for ever. Can be set."""
        cdef int64_t ns = rio_time_get(&self.timeout_ns)
        cdef Tls tls
        if ns == ASK_CLOCK:
            with cython.critical_section(self):   # another thread may be closing
                clock, tls = self.clock, self.tls
            if clock is not None:
                return clock.gettimeout() if tls is None else tls.timeout()
        return None if ns < 0 else ns / 1e9

    @timeout.setter
    def timeout(self, seconds):
        rio_time_set(&self.timeout_ns, to_nanoseconds(seconds))

    @property
    def max_line(self):
        """The longest line in bytes, newline included; None: no limit."""
        return None if self.line_limit == SIZE_MAX else self.line_limit

    cdef int check_open(self) except -1:
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return 0

    # ---- the end

    def close(self):
        """Flush, and close the descriptor if this Rio owns it. Closing again does nothing.

        The descriptor is closed even if the flush raises: who wants to try again calls flush() first. Raises
        ConcurrentCall, and closes nothing, while another thread reads or writes; to wake that thread, shut the socket
        down.
        """
        if not self.enter_both():
            return
        try:
            if self.tls is None or not self.tls.lost():   # that of another process, to which the output belongs
                self.flush_held()
        finally:
            self.disown()

    def detach(self):
        """Flush, and give up the descriptor: (fd as it was passed, the bytes received and not yet read).

        Both are the caller's then, and this Rio is closed. If the flush raises, nothing has changed.
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
        cdef rio_call call
        self.start(&call, ...)
        self.raise_kept(&call)
        self.push(&call, NOTHING)
        return 0

    cdef int disown(self) except -1:
        """Close both sides, which the caller has entered, for good, and the descriptor if it is ours to close."""
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
        """Close the descriptor if this Rio owns it, without flushing and with a ResourceWarning.

        Called by name, this is a call of both sides. It does nothing while another call is under way, and nothing to a
        Rio that is closed or detached: Python reports what a finalizer raises and nobody could catch it.
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
            return   # as io does with an error in closing
        try:
            warnings.warn(f"unclosed {self!r}: closed, its output not flushed", ResourceWarning, 1, self)
        finally:
            self.disown()

    # ---- what io.BufferedIOBase has and a stream has not

    def seek(self, offset, whence=0, /):
        """Raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("a Rio is a stream and cannot seek")

    def tell(self):
        """Raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("a Rio is a stream and has no position")

    def truncate(self, size=None, /):
        """Raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("a Rio is a stream and cannot be cut")


io.BufferedIOBase.register(Rio)


def _socket_file(sock, raw, bufsize):
    """A Rio with the manners of the standard library's socket files: what rioecho.makefile is made of.

    `raw` is the socket.SocketIO that counts as an open file of `sock`: it is what the Rio owns.
    """
    cdef Rio rio = Rio(raw, bufsize=bufsize, timeout=None, max_line=None)
    rio.own = AS_FILE
    rio.clock = sock   # settimeout() after makefile() counts, as it does there
    rio.timeout_ns = ASK_CLOCK
    rio.can_read = raw.readable()
    rio.can_write = raw.writable()
    rio.tls = tls_of(sock)
    return rio

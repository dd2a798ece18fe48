"""What a Rio of asyncio has to send: class Output.

``write()`` appends to a list. The loop calls ``pump()`` once for all that was written in one of its turns, and a read
that has to wait calls it first, so that a batch is one ``send``. The transport is given more only when the kernel has
taken all that it has; over TLS, at most 64 KiB at a time. So what is unsent is in the list, and known.
"""

import io

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, ECONNABORTED, EPIPE
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport deadline_after
from rioecho._core.posix cimport rio_assert, rio_monotonic_ns
from rioecho.aio._input cimport Input

from rioecho.errors import ConcurrentCall


cdef enum:
    # Maximum number of bytes to give to the transport at once, unless one object has more. Over TLS a transport takes
    # one write of any size and encrypts it in memory.
    AT_ONCE = 1 << 18
    AT_ONCE_TLS = 1 << 16
    # Idle output is looked at so many times in its time limit: bytes that went in between renew it.
    LOOKS = 8
    SOON = 1_000_000   # nanoseconds; the loop's clock may be coarse


cdef class Output(Input):
    def __cinit__(self, *args, **options):
        self.chunks = []
        self.drains = []
        self.is_readable = self.is_writable = self.is_socket = True

    # ---- accepting output

    cdef int check_output(self) except -1:
        """Raise the reason why no output is accepted."""
        if self.has_closed:
            raise ValueError("I/O operation on a closed Rio")
        if not self.is_writable:
            raise io.UnsupportedOperation("not writable: the descriptor is open for reading only")
        if self.ended_output:
            raise BrokenPipeError(EPIPE, "write_eof() was called: nothing can be written after it")
        if self.lost:
            if self.error is None:
                raise BrokenPipeError(EPIPE, "the connection was closed")
            self.raise_lost()
        return 0

    cdef Py_ssize_t accept(self, object data) except -1:
        """Take a bytes-like object as output. Returns its length; on an error nothing was taken."""
        cdef Py_buffer view
        cdef Py_ssize_t n
        if PyBytes_CheckExact(data):
            chunk = data
        else:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                chunk = PyBytes_FromStringAndSize(<char *>view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
        n = PyBytes_GET_SIZE(chunk)
        if n:
            self.chunks.append(chunk)
            self.queued += n
            self.taken += n
        return n

    def write(self, data, /):
        """Buffer ``data``, a bytes-like object, for sending. Returns its length.

        It never waits and makes no system call: what is written in one turn of the event loop, or until a read has to
        wait, is sent at once. ``data`` is copied unless it is a ``bytes`` object. While more than ``bufsize`` bytes are
        unsent, and no ``writen()`` or ``flush()`` waits for them, nothing is read from the peer.

        Another task may wait in ``writen()`` or ``flush()``: ``data`` is sent after its output.

        Raises what ended the connection once it is lost, ``BrokenPipeError`` after ``write_eof()``,
        ``io.UnsupportedOperation`` if the descriptor is open for reading only, and ``ValueError`` if the Rio is closed;
        nothing was buffered then.
        """
        cdef Py_ssize_t n
        if self.lost or self.ended_output or self.has_closed:
            self.check_output()
        n = self.accept(data)
        if not self.scheduled:
            self.schedule()
        return n

    def writelines(self, lines, /):
        """Buffer each of ``lines``, an iterable of bytes-like objects, as ``write()`` does.

        On an error, also of the iterable, nothing was buffered.
        """
        cdef size_t n = 0
        self.check_output()
        cdef list chunks = [line if PyBytes_CheckExact(line) else bytes(memoryview(line)) for line in lines]
        self.check_output()   # the iterable may have run anything
        for chunk in chunks:
            n += PyBytes_GET_SIZE(chunk)
        if n:
            self.chunks += [chunk for chunk in chunks if chunk]
            self.queued += n
            self.taken += n
        if not self.scheduled:
            self.schedule()

    cdef int schedule(self) except -1:
        if self.queued and not self.stalled:
            self.loop.call_soon(self.protocol.pump)
            self.scheduled = True
        return 0

    # ---- giving it to the transport

    cdef int connect(self, object transport) except -1:
        Input.connect(self, transport)
        if self.raw is None:
            transport.set_write_buffer_limits(0)   # so that resume_writing() means that all was sent
        return 0

    cdef object bottom(self):
        """Return the transport that has the descriptor; None if there is no connection."""
        return self.transport if self.raw is None else self.raw

    cdef object next_chunk(self):
        """Remove and return the next bytes for the transport, all of them if they are not too many."""
        cdef size_t most = AT_ONCE_TLS if self.tls else AT_ONCE
        cdef size_t n = 0
        cdef Py_ssize_t i
        cdef list chunks = self.chunks
        first = chunks[0]
        if self.offset or (self.tls and PyBytes_GET_SIZE(first) > AT_ONCE_TLS):
            n = min(PyBytes_GET_SIZE(first) - self.offset, most)
            data = PyBytes_FromStringAndSize(PyBytes_AS_STRING(first) + self.offset, n)
            self.offset += n
            if self.offset == <size_t>PyBytes_GET_SIZE(first):
                del chunks[0]
                self.offset = 0
        elif self.queued <= most:
            data = first if len(chunks) == 1 else b"".join(chunks)
            self.chunks = []
        else:
            i = 0
            for chunk in chunks:
                if i and n + <size_t>PyBytes_GET_SIZE(chunk) > most:
                    break
                n += PyBytes_GET_SIZE(chunk)
                i += 1
            data = first if i == 1 else b"".join(chunks[:i])
            del chunks[:i]
        n = PyBytes_GET_SIZE(data)
        rio_assert(n > 0 and n <= self.queued)
        self.queued -= n
        self.given += n
        return data

    cdef int pump(self) except -1:
        """Give the buffered output to the transport, until it cannot send it at once."""
        self.scheduled = False
        if self.lost or self.securing:
            return 0
        while self.queued and not self.stalled and not self.lost and not self.transport.is_closing():
            self.transport.write(self.next_chunk())
        if not self.lost:   # write() may have said so at once
            if self.stalled:
                self.held_back = self.bottom().get_write_buffer_size()
            elif self.gone != self.given and not self.transport.is_closing():
                self.gone = self.given
        self.wake_drains()
        return self.steer()

    cdef int before_wait(self) except -1:
        """Send the buffered output before a call waits for input."""
        if not self.is_readable:
            raise io.UnsupportedOperation("not readable: the descriptor is open for writing only")
        return self.pump() if self.queued else 0

    cdef int end_input(self) except -1:
        """Note the end of the input. TLS ends the output with it: what was written before is sent."""
        Input.end_input(self)
        return self.pump() if self.tls and self.queued else 0

    cdef int stall(self, bint stalled) except -1:
        """Note that the transport holds unsent bytes, or that it has sent all that it was given."""
        self.stalled = stalled
        if not stalled:
            self.gone = self.given   # before more is given: a call that waits for those bytes is done
            self.pump()
        return 0

    cdef bint choked(self) noexcept:
        return self.turning or (
            self.queued + (self.held_back if self.stalled else 0) > self.inp.base and not self.writer
        )

    cdef int lose(self, object error) except -1:
        if not self.lost:
            self.output_lost = self.gone < self.taken and not self.aborted
            self.drop_output()
        Input.lose(self, error)
        self.raw = None
        return self.wake_drains()

    cdef int drop_output(self) except -1:
        """Discard the output that the transport has not been given."""
        self.chunks = []
        self.queued = self.offset = 0
        return 0

    cdef int steer(self) except -1:
        """Read from the transport, or stop reading; not while a TLS handshake reads from it."""
        return 0 if self.securing else Input.steer(self)

    # ---- waiting until it was sent

    cdef int begin_output(self, str name) except -1:
        """Begin a call that waits until output was sent. Raises ``ConcurrentCall`` if another one waits."""
        self.check_output()
        if self.writer:
            raise ConcurrentCall(f"{name}(): another task waits in a call that writes on this Rio")
        return 0

    cdef int wake_drains(self) except -1:
        for future in self.drains:
            if not future.done():
                future.set_result(None)
        return 0

    async def _drain(self, timeout):
        """Wait until all output that was accepted before was sent, for at most ``timeout`` nanoseconds; -1: no limit.

        Raises what ended the connection, ``TimeoutError``, or ``BlockingIOError`` if the time is 0. What was accepted
        is sent nevertheless, as long as there is a connection.
        """
        cdef uint64_t mark = self.taken
        cdef int64_t limit = timeout
        cdef int64_t end, now, went, look
        cdef size_t left, before
        if self.gone >= mark:
            return
        self.pump()
        if self.gone >= mark:
            return
        self.raise_unsent()
        if limit == 0:
            raise BlockingIOError(EAGAIN, "not everything was sent and the timeout is 0; it is still going out")
        now = went = rio_monotonic_ns()
        end = deadline_after(limit) if limit > 0 else INT64_MAX
        before = self.unsent()
        while self.gone < mark:
            self.raise_unsent()
            now = rio_monotonic_ns()
            left = self.unsent()
            if left != before:
                before = left
                went = now
            if now >= end:
                raise TimeoutError(f"timed out after {limit / 1e9:g} s; what was not sent is still going out")
            if self.idle_ns >= 0 and now - went >= self.idle_ns:
                raise TimeoutError(
                    f"idle: no byte was sent for {self.idle_ns / 1e9:g} s; what was not sent is still going out"
                )
            future = self.loop.create_future()
            handle = None
            look = end if self.idle_ns < 0 else min(end, now + self.idle_ns // LOOKS)
            if look < INT64_MAX:
                handle = self.loop.call_later(max(look - now, <int64_t>SOON) / 1e9, wake_up, future)
            self.drains.append(future)
            self.protocol.writing = self   # while a call waits, the Rio is kept
            try:
                await future
            finally:
                self.drains.remove(future)
                if not self.drains:
                    self.protocol.writing = None
                if handle is not None:
                    handle.cancel()

    cdef int raise_unsent(self) except -1:
        """Raise the reason why what is unsent will not be sent, if there is one."""
        if self.aborted:
            raise ConnectionAbortedError(ECONNABORTED, "the connection was aborted before everything was sent")
        if self.lost:
            self.output_lost = False   # this call says so
            self.raise_lost()
        return 0

    cdef size_t unsent(self) except? 0:
        """Return the number of bytes accepted and not sent."""
        bottom = self.bottom()
        return self.queued if bottom is None else self.queued + <size_t>bottom.get_write_buffer_size()

    async def _flush(self, timeout):
        """Wait until the output was sent; one call at a time."""
        self.writer = True
        try:
            await self._drain(timeout)
        finally:
            self.writer = False
            self.steer()

    async def writen(self, data, *, timeout=...):
        """Send what is buffered, then all of ``data``, a bytes-like object. Returns its length.

        It returns when everything was passed to the kernel. ``data`` is taken as a whole at the beginning: if the call
        is cancelled or raises ``TimeoutError``, ``data`` is still sent, in order, and must not be written again. The
        error's ``characters_written``, which ``rioecho.written(error)`` returns, is ``len(data)`` then. An error that
        has none was raised before anything was taken.

        ``timeout`` limits the whole call in seconds, by default that of the Rio; ``None`` is no limit, and with 0 the
        call raises ``BlockingIOError`` if the kernel did not take everything at once. With an ``idle_timeout`` it also
        ends when no byte was sent for that long.

        Raises what ended the connection; what was not sent then is lost. Raises ``ConcurrentCall`` if another task
        waits in a call that writes, and the errors of ``write()``. (CS:APP 10.5.1, ``rio_writen``.)
        """
        cdef int64_t limit = self.timeout_ns if timeout is ... else to_nanoseconds(timeout)
        self.begin_output("writen")
        n = self.accept(data)
        try:
            await self._flush(limit)
        except BaseException as error:
            error.characters_written = n
            raise
        return n

    async def flush(self, *, timeout=...):
        """Send what is buffered. Returns when everything was passed to the kernel.

        If the call is cancelled or raises ``TimeoutError``, the output is still sent. Times, limits and errors are
        those of ``writen()``.
        """
        cdef int64_t limit = self.timeout_ns if timeout is ... else to_nanoseconds(timeout)
        if self.ended_output and self.is_writable and not self.has_closed:
            return   # write_eof() has flushed
        self.begin_output("flush")
        await self._flush(limit)

    async def write_eof(self, *, timeout=...):
        """Flush, and close the sending side (``shutdown(SHUT_WR)``): the peer reads EOF. Reading is still possible.

        If the flush fails, nothing was ended. Calling it again has no effect. Later writes raise ``BrokenPipeError``.
        Raises ``io.UnsupportedOperation`` over TLS, which has no half-close here, and on a pipe or a terminal.
        """
        cdef int64_t limit = self.timeout_ns if timeout is ... else to_nanoseconds(timeout)
        if self.ended_output and self.is_writable and not self.has_closed:
            return
        self.begin_output("write_eof")
        if self.tls or not self.is_socket:
            raise io.UnsupportedOperation(
                "write_eof: TLS cannot end one direction alone" if self.tls else "write_eof: not a socket"
            )
        await self._flush(limit)
        self.check_output()   # it may have been closed meanwhile
        self.transport.write_eof()
        self.ended_output = True


def wake_up(future):
    if not future.done():
        future.set_result(None)

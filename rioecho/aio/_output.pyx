"""What a Rio of asyncio has to send: class Output.

``write()`` appends to a list. The loop calls ``pump()`` once for all that was written in one of its turns, and a read
that has to wait calls it first, so that a batch is one ``send``. The transport is given more only when it has sent what
it has, or, over TLS, when it is below its mark. So what is unsent is in the list, and known.
"""

import io

from cpython.bytes cimport PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EPIPE
from libc.stdint cimport int64_t, uint64_t

from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport deadline_after
from rioecho._core.posix cimport rio_monotonic_ns
from rioecho.aio._input cimport Input

from rioecho.errors import ConcurrentCall


cdef enum:
    # Maximum number of bytes to give to the transport at once, unless one object has more. Over TLS a transport takes
    # one write of any size, whatever its mark is.
    AT_ONCE = 1 << 18
    AT_ONCE_TLS = 1 << 16


cdef class Output(Input):
    def __cinit__(self, *args, **options):
        self.chunks = []

    # ---- accepting output

    cdef int check_output(self) except -1:
        """Raise the reason why no output is accepted."""
        if self.has_closed:
            raise ValueError("I/O operation on a closed Rio")
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

        It costs no system call: what is written in one turn of the event loop, or until a read has to wait, is sent at
        once. It never waits. While more than ``bufsize`` bytes are unsent, and no ``writen()`` or ``flush()`` waits for
        them, nothing is read from the peer.

        Raises what ended the connection once it is lost, ``BrokenPipeError`` after ``write_eof()``, and ``ValueError``
        if the Rio is closed; nothing was buffered then.
        """
        cdef Py_ssize_t n
        if self.lost or self.ended_output or self.has_closed:
            self.check_output()
        n = self.accept(data)
        if not self.scheduled:
            self.schedule()
        return n

    def writelines(self, lines, /):
        """Buffer each of ``lines``, bytes-like objects, as ``write()`` does. On an error nothing was buffered."""
        cdef list before = self.chunks
        self.check_output()
        chunks = [line if PyBytes_CheckExact(line) else bytes(memoryview(line)) for line in lines]
        self.check_output()   # the iterable may have run anything
        for chunk in chunks:
            self.accept(chunk)
        if not self.scheduled:
            self.schedule()

    cdef int schedule(self) except -1:
        if self.queued and not self.stalled:
            self.scheduled = True
            self.loop.call_soon(self.protocol.pump)
        return 0

    # ---- giving it to the transport

    cdef int connect(self, object transport) except -1:
        Input.connect(self, transport)
        if not self.tls and hasattr(transport, "set_write_buffer_limits"):
            transport.set_write_buffer_limits(0)   # so that resume_writing() means that all was sent
        return 0

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
        self.queued -= n
        self.given += n
        return data

    cdef int pump(self) except -1:
        self.scheduled = False
        while self.queued and not self.stalled and not self.lost and not self.transport.is_closing():
            self.transport.write(self.next_chunk())
        if self.stalled and not self.lost:
            self.held_back = self.transport.get_write_buffer_size()
        if self.sent is not None and not self.sent.done():
            self.sent.set_result(None)
        return self.steer()

    cdef int before_wait(self) except -1:
        return self.pump() if self.queued else 0

    cdef int stall(self, bint stalled) except -1:
        self.stalled = stalled
        if not stalled:
            self.pump()
        return 0

    cdef bint out(self, uint64_t mark) noexcept:
        """Report whether the first ``mark`` bytes of output were sent, or over TLS have been taken."""
        return self.given >= mark and not self.stalled

    cdef bint choked(self) noexcept:
        return self.queued + (self.held_back if self.stalled else 0) > self.inp.base and not self.writer

    cdef int lose(self, object error) except -1:
        if not self.lost:
            self.output_lost = self.queued or self.stalled
            self.chunks = []
            self.queued = self.offset = 0
        Input.lose(self, error)
        if self.sent is not None and not self.sent.done():
            self.sent.set_result(None)
        return 0

    # ---- waiting until it was sent

    cdef int begin_output(self, str name) except -1:
        if self.writer:
            raise ConcurrentCall(f"{name}(): another task waits in a call that writes on this Rio")
        return self.check_output()

    async def drain(self, given):
        """Wait until the first bytes of the output were sent, as many as were accepted before.

        Raises what ended the connection, or ``TimeoutError``; what was accepted goes out nevertheless.
        """
        cdef uint64_t mark = self.taken
        cdef int64_t timeout = self.timeout_ns if given is ... else to_nanoseconds(given)
        cdef int64_t end, now, went
        cdef size_t left, before
        if self.transport is not None:
            self.pump()
        if self.out(mark):
            return
        if self.lost:
            self.raise_lost()
        if timeout == 0:
            raise BlockingIOError(EAGAIN, "the transport has not sent everything yet; it goes on")
        now = went = rio_monotonic_ns()
        end = deadline_after(timeout) if timeout > 0 else -1
        before = self.unsent()
        self.protocol.writing = self
        try:
            while not self.out(mark):
                if self.lost:
                    self.raise_lost()
                now = rio_monotonic_ns()
                left = self.unsent()
                if left != before:
                    before = left
                    went = now
                if end >= 0 and now >= end:
                    raise TimeoutError(f"timed out after {timeout / 1e9:g} s; what was not sent goes on going out")
                if self.idle_ns >= 0 and now - went >= self.idle_ns:
                    raise TimeoutError(f"idle: no byte went for {self.idle_ns / 1e9:g} s")
                self.sent = self.loop.create_future()
                handle = None
                if end >= 0 or self.idle_ns >= 0:
                    wake_at = end if self.idle_ns < 0 else went + self.idle_ns if end < 0 else min(end, went + self.idle_ns)
                    handle = self.loop.call_later(max(wake_at - now, 1_000_000) / 1e9, wake_up, self.sent)
                try:
                    await self.sent
                finally:
                    if handle is not None:
                        handle.cancel()
        finally:
            self.sent = None
            self.protocol.writing = None

    cdef size_t unsent(self) except? 0:
        """Return the number of bytes accepted and not sent."""
        cdef size_t n = self.queued
        if self.transport is not None:
            n += self.transport.get_write_buffer_size()
        return n

    async def writen(self, data, *, timeout=...):
        """Send what is buffered, then all of ``data``. Returns its length (CS:APP 10.5.1, ``rio_writen``)."""
        self.begin_output("writen")
        to_nanoseconds(None if timeout is ... else timeout)
        n = self.accept(data)
        self.writer = True
        try:
            await self.drain(timeout)
        except BaseException as error:
            error.characters_written = n
            raise
        finally:
            self.writer = False
            self.steer()
        return n

    async def flush(self, *, timeout=...):
        """Send what is buffered."""
        self.begin_output("flush")
        self.writer = True
        try:
            await self.drain(timeout)
        finally:
            self.writer = False
            self.steer()

    async def write_eof(self, *, timeout=...):
        """Flush, and end the output: the peer reads EOF."""
        self.begin_output("write_eof")
        if self.transport is None or not self.transport.can_write_eof():
            raise io.UnsupportedOperation("write_eof: TLS has no half-close")
        self.writer = True
        try:
            await self.drain(timeout)
            self.ended_output = True
            self.transport.write_eof()
        finally:
            self.writer = False
            self.steer()


def wake_up(future):
    if not future.done():
        future.set_result(None)

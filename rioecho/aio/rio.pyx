"""The asyncio twin of the blocking Rio: class Rio, and its methods that read.

What has been received is in aio/_arrival.pyx; the call that waits for it in aio/_input.pyx; what is to be sent in
aio/_output.pyx; TLS and the end of a connection in aio/_connection.pyx.
"""

import asyncio

cimport cython
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport buffer_init
from rioecho._core.convert cimport to_limit, to_nanoseconds, to_size
from rioecho._rio.fed cimport (
    ALL_LINES,
    HOLD,
    LINE,
    LINES,
    NUMBER,
    PEEK,
    SKIP,
    SKIPLINE,
    SOME,
    ask,
    ask_line,
    ask_payload,
    ask_until,
)
from rioecho._rio.framing cimport to_line_limit
from rioecho._rio.input cimport in_frame
from rioecho.aio._call cimport Call, new_call
from rioecho.aio._connection cimport Connection
from rioecho.aio._protocol cimport Protocol


cdef object current_task = asyncio.current_task
cdef object MINUS_ONE = -1   # the default of a size; compared by identity, so that the usual call converts nothing
cdef object KEY = object()   # what open_rio() passes to the constructor


class _SocketProtocol(Protocol, asyncio.BufferedProtocol):
    """The protocol of a transport that stores what it receives in the buffer."""

    __slots__ = ()


@cython.final
cdef class Rio(Connection):
    """A buffered reader and writer on asyncio that never loses a byte, whatever interrupts it: the twin of rioecho.Rio.

    ``rioecho.aio.connect()``, ``start_server()`` and ``wrap()`` make one, on asyncio's loop, uvloop or any other loop
    with asyncio's interface. They take these options:

    ``bufsize``
        A number of bytes. While more than that are held that no call waits for, or while more than that were taken by
        ``write()`` and are unsent, and neither ``writen()`` nor ``flush()`` waits for them, nothing is read from the
        peer (back-pressure). The buffer grows for a call that needs more, and is given back afterwards.
    ``timeout``
        The time in seconds that one call may take as a whole, on the monotonic clock; ``None`` waits without limit. A
        call with timeout 0 does not go to the event loop: it returns what it can with the bytes that are held, or
        raises ``BlockingIOError``. Each method that waits takes a ``timeout`` of its own.
    ``idle_timeout``
        The time in seconds in which at least one byte must come, for a call that reads, or go, for one that writes;
        ``None`` for no limit. Whichever of ``timeout`` and ``idle_timeout`` is over first ends the call.
    ``max_line``
        The maximum length in bytes of a line or frame that ends in a separator, including the separator; ``None`` for
        no limit.

    A method that may wait returns a coroutine, which ``asyncio.create_task()``, ``gather()``, ``wait_for()`` and
    ``TaskGroup`` take; nothing happens before it is awaited. A call whose answer is held completes without a turn of
    the event loop: a loop of such calls gives no other task a turn.

    After a cancellation, ``asyncio.timeout()``, ``TimeoutError``, ``BlockingIOError``, ``LineTooLong`` or
    ``MemoryError``, every byte received is still held, in order, and the next call continues where this one stopped. In
    ``frame()`` that is true of several reads together: if the block ends by an exception, a cancellation included, what
    was held at its beginning is held again. Lines that came before the connection was lost are returned before the
    error is raised; each further call raises it again, and ``read_buffered()`` returns what is left.

    One task may read while another one writes. A second one on the same side gets ``ConcurrentCall``, without effect;
    ``write()``, ``read_buffered()`` and ``unread()`` are possible beside any call. A Rio belongs to its event loop: use
    it in that thread only.

    Output that ``write()`` takes is sent in one piece when the turn of the event loop ends or a read has to wait, so
    that ``async for line in rio: rio.write(line)`` answers a batch of lines with one ``send``.

    ``async with`` closes the connection at the end of its block, after flushing, or aborts it if the block ends by an
    exception. A Rio that is dropped unclosed issues a ``ResourceWarning`` and closes without flushing.
    """

    def __cinit__(self, *args, **options):
        if len(args) != 1 or args[0] is not KEY:
            raise TypeError(
                "rioecho.aio.Rio is made by rioecho.aio.connect(), rioecho.aio.start_server() or rioecho.aio.wrap()"
            )

    def __repr__(self):
        if self.has_closed:
            return "<rioecho.aio.Rio closed>"
        if self.transport is None:
            return f"<rioecho.aio.Rio holding {self.buffered} bytes, {'lost' if self.lost else 'not connected'}>"
        return f"<rioecho.aio.Rio over {self.transport!r}>"

    cdef Call call(self, str name, object timeout):
        """Return a call of a method that reads."""
        cdef Call call
        if timeout is not ...:
            to_nanoseconds(timeout)
        call = new_call(self, name, timeout)
        if in_frame(self):
            call.task = current_task(self.loop)
        return call

    # ---- lines

    def readline(self, limit=-1, *, timeout=...):
        """Read a line, including its newline, as ``rioecho.Rio.readline()`` does.

        Returns the line as bytes. With a ``limit`` of 0 or more, returns at most ``limit`` bytes of it, and the next
        call returns the rest. At EOF, returns an unterminated last line as it is, then ``b""``. A line that is held is
        returned without going to the event loop.

        Raises ``LineTooLong`` if no ``limit`` is given and the line is longer than ``max_line`` bytes, ``TimeoutError``
        (``BlockingIOError`` if the timeout is 0 and the call would wait), ``ConcurrentCall`` if another task reads,
        ``ValueError`` if the Rio is or gets closed, and what ended the connection, an ``OSError``, once what is held
        does not satisfy the call. After any of them, and after a cancellation, the bytes received are still held, in
        order, and the next call continues.
        """
        cdef Call call = self.call("readline", timeout)
        if limit is MINUS_ONE:
            ask(&call.asked, LINE, self.line_limit)
        else:
            ask_line(&call.asked, self, limit)
        return call

    def __aiter__(self):
        """Return the Rio itself: ``async for line in rio`` iterates over its lines."""
        return self

    def __anext__(self):
        """Read the next line, as ``readline()`` does. Raises ``StopAsyncIteration`` at EOF."""
        cdef Call call = self.call("readline", ...)
        ask(&call.asked, LINE, self.line_limit)
        call.iterates = True
        return call

    def readlines1(self, *, timeout=...):
        """Return a list of all complete lines that are held; if there are none, wait for the first.

        Each line includes its newline. At EOF, returns a list of the unterminated last line, then an empty list.

        Raises the errors of ``readline()``. The lines before one that is too long are returned first.
        """
        cdef Call call = self.call("readlines1", timeout)
        ask(&call.asked, LINES, self.line_limit)
        return call

    def readlines(self, hint=-1, *, timeout=...):
        """Return a list of all lines up to EOF; if ``hint`` is positive, stop after more than ``hint`` bytes.

        ``timeout`` is for all lines together. Raises the errors of ``readline()``; nothing is consumed before the list
        is complete, so that the next call returns all bytes received.
        """
        cdef Call call = self.call("readlines", timeout)
        cdef Py_ssize_t enough = to_limit(hint, "hint")
        ask(&call.asked, ALL_LINES, SIZE_MAX if enough <= 0 else <size_t>enough)
        return call

    def readuntil(self, sep=b"\n", limit=-1, *, timeout=...):
        """Read through the next separator and return the bytes, the separator included.

        ``sep`` is a bytes-like object, or a tuple of them: then the one that ends first counts. ``limit`` is the
        maximum number of bytes, by default ``max_line``.

        Raises ``IncompleteRead`` if the input ends before a separator; its ``partial`` has the remaining bytes, which
        are removed from the buffer. Raises ``LineTooLong`` if no separator ends within ``limit`` bytes, and all other
        errors as ``readline()`` does.
        """
        cdef Call call = self.call("readuntil", timeout)
        call.separator = sep
        ask_until(&call.asked, self, sep, limit)
        return call

    def skipline(self, *, timeout=...):
        """Discard the bytes through the next newline, for example to continue after ``LineTooLong``.

        Returns their number, including the newline. At EOF, discards the remaining bytes and returns their number.

        Raises the errors of ``readline()``. The line is discarded only after its newline has come, except as
        ``rioecho.Rio.skipline()`` says of a line far longer than ``max_line``: the next call counts its beginning.
        """
        cdef Call call = self.call("skipline", timeout)
        ask(&call.asked, SKIPLINE, 0)
        return call

    # ---- a number of bytes

    def read(self, n=-1, *, timeout=...):
        """Read exactly ``n`` bytes, or up to EOF if ``n`` is negative or ``None``.

        Returns the bytes, fewer than ``n`` only at EOF, and ``b""`` once the input is exhausted. Memory is allocated
        as bytes arrive, whatever ``n`` is.

        Raises the errors of ``readline()``, except ``LineTooLong``; the bytes received are still held.
        """
        cdef Call call = self.call("read", timeout)
        cdef Py_ssize_t size = to_limit(n, "n")
        ask(&call.asked, NUMBER, SIZE_MAX if size < 0 else <size_t>size)
        return call

    def readexactly(self, n, *, timeout=...):
        """Read exactly ``n`` bytes and return them.

        Raises ``IncompleteRead`` if the input ends before that; its ``partial`` has the bytes received, which are
        removed from the buffer. Raises all other errors as ``read()`` does.
        """
        cdef Call call = self.call("readexactly", timeout)
        ask(&call.asked, NUMBER, to_size(n, "n"))
        call.asked.strict = True
        return call

    def read1(self, n=-1, *, timeout=...):
        """Return the held bytes, at most ``n`` of them unless ``n`` is negative; wait only if there are none.

        Returns ``b""`` at EOF. Raises the errors of ``read()``.
        """
        cdef Call call = self.call("read1", timeout)
        cdef Py_ssize_t size = to_limit(n, "n")
        ask(&call.asked, SOME, SIZE_MAX if size < 0 else <size_t>size)
        return call

    def readframe(self, width=4, byteorder="big", *, limit=..., timeout=...):
        """Read a frame: a length, an unsigned integer of ``width`` bytes (1 to 8), and a payload of that many bytes.

        Returns the payload, whole; ``None`` at the end of the input between two frames. ``byteorder`` is that of the
        length, ``"big"`` (network byte order, RFC 1700) or ``"little"``. ``limit`` is the maximum length of a payload,
        by default ``max_line``; ``None`` means no limit.

        Raises ``FrameTooLong`` if the payload is longer, and the errors of ``read()``: the length and the bytes
        received are still held. Raises ``IncompleteRead`` if the input ends inside a frame; its ``partial`` has the
        bytes of the frame, its length included, which are removed from the buffer.
        """
        cdef Call call = self.call("readframe", timeout)
        ask_payload(&call.asked, self, width, byteorder, limit)
        return call

    def skip(self, n, *, timeout=...):
        """Discard the next ``n`` bytes, without copying them. Returns their number, fewer only at EOF.

        Raises the errors of ``read()``. Nothing is discarded then, except as ``rioecho.Rio.skip()`` says of a large
        ``n``: the next ``skip()`` counts the bytes that were.
        """
        cdef Call call = self.call("skip", timeout)
        ask(&call.asked, SKIP, to_size(n, "n"))
        return call

    def peek(self, n=0, *, timeout=...):
        """Return all held bytes without consuming them; wait only if there are none.

        Returns ``b""`` at EOF. ``n`` is only a hint, as in ``io``, and is ignored; to wait for n bytes, call
        ``fill(n)`` first. Raises the errors of ``read()``.
        """
        cdef Call call = self.call("peek", timeout)
        to_limit(n, "n")
        ask(&call.asked, PEEK, 0)
        return call

    def fill(self, n=1, *, timeout=...):
        """Wait until at least ``n`` bytes are held, and return the number of held bytes.

        Returns fewer than ``n`` only at EOF. The buffer grows as needed; ``peek()`` then returns its contents. Raises
        the errors of ``read()``.
        """
        cdef Call call = self.call("fill", timeout)
        ask(&call.asked, HOLD, to_size(n, "n"))
        return call

    def readinto(self, buffer, *, timeout=...):
        """Read into ``buffer``, a writable bytes-like object, until it is full or the input ends.

        Returns the number of bytes stored, fewer than ``len(buffer)`` only at EOF. They are stored when all have come:
        on an error, one of those of ``read()``, ``buffer`` is unchanged and the bytes received are still held. Its
        memory cannot be resized before the call has ended.
        """
        cdef Call call = self.call("readinto", timeout)
        call.aim(buffer)
        call.asked.strict = True
        return call

    def readinto1(self, buffer, *, timeout=...):
        """Store the held bytes in ``buffer``, a writable bytes-like object, as many as fit; wait if there are none.

        Returns the number of bytes stored, 0 at EOF. Raises the errors of ``readinto()``.
        """
        cdef Call call = self.call("readinto1", timeout)
        call.aim(buffer)
        return call


def open_rio(
    loop,
    *,
    bufsize=65536,
    timeout=None,
    idle_timeout=None,
    max_line=1 << 20,
    reads=True,
    writes=True,
    is_socket=True,
    made=None,
):
    """Return ``(rio, protocol)``: a Rio without a connection, and the protocol that gives it one.

    ``made`` is called with the Rio when the connection is made; the others are what the descriptor is.
    """
    cdef Rio rio
    cdef size_t size = to_size(bufsize, "bufsize")
    if size == 0:
        raise ValueError("bufsize must be at least 1")
    rio = Rio.__new__(Rio, KEY)
    rio.loop = loop
    rio.line_limit = to_line_limit(max_line)
    rio.timeout = timeout
    rio.idle_timeout = idle_timeout
    buffer_init(&rio.inp, size)
    rio.is_readable = reads
    rio.is_writable = writes
    rio.ended_output = not writes
    rio.is_socket = is_socket
    rio.protocol = _SocketProtocol(rio, made)
    return rio, rio.protocol

"""The book's echo() for one descriptor, without the GIL (CS:APP 11.4.9).

All of its state is in one C struct, and the loop (``echo_turn``) returns a code. The caller takes the GIL to do what
needs Python (run signal handlers, log a line, raise) and then calls it again; nothing is lost by returning at any
point.

Input is read only when everything that may be sent has been sent, so a peer that sends and never reads is stopped by
back-pressure.
"""

import sys
from io import UnsupportedOperation

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOMEM, EPIPE
from libc.stdint cimport SIZE_MAX, int64_t, uint64_t

from rioecho._core.budget cimport (
    MemoryBudget,
    Share,
    share_add,
    share_favour,
    share_favour_no_more,
    share_reserve_room,
    share_room,
    share_take,
)
from rioecho._core.buffer cimport (
    FOUND,
    buffer_added,
    buffer_consume,
    buffer_fits,
    buffer_growth,
    buffer_held,
    buffer_init,
    buffer_room,
    buffer_start,
    find_frame,
)
from rioecho._core.convert cimport check_source, descriptor_of, is_tls, open_stream, os_error, to_nanoseconds, to_size
from rioecho._core.counts cimport Counts
from rioecho._core.fdio cimport (
    FD_SOCKET,
    WOKEN,
    deadline_after,
    fd_has_position,
    fd_ready,
    fd_try_read,
    fd_wait_or_wake,
    would_block,
)
from rioecho._core.posix cimport (
    O_RDWR,
    POLLIN,
    POLLOUT,
    RIO_FREE,
    RIO_SOURCE_UNKNOWN,
    SHUT_WR,
    rio_add_relaxed,
    rio_assert,
    rio_atomic_add,
    rio_flag,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_load_relaxed,
    rio_monotonic_ns,
    rio_socket_error,
    rio_source,
    rio_unacknowledged,
    shutdown,
)
from rioecho._server.echo cimport (
    CHUNK,
    CHUNK_MIN,
    DRAINING,
    ECHOING,
    LINGERING,
    LOOKS,
    MEMORY_LOOK,
    MEMORY_LOOK_MAX,
    PAUSED,
    echo_due,
    echo_send,
    held_free,
    held_resize,
    held_shrink,
    patience,
    peer_took,
)
from rioecho._server.proxy cimport PROXY_DONE, PROXY_WRONG, proxy_answer, proxy_feed, proxy_is_begun, proxy_t

from rioecho._core.sources import stream_of
from rioecho.errors import ConcurrentCall


cdef enum:
    TURNS = 1024               # system calls between two checks of signals and of the drain deadline
    SPARE_KEPT = 100_000_000   # nanoseconds for which the memory of a long line is kept for the next one


cdef void echo_frame(echo_t *e) noexcept nogil:
    """Set ``ready`` to the length of the whole lines in the buffer (``by_line``: of one), or of a piece due anyway."""
    cdef size_t held = buffer_held(&e.b)
    cdef size_t n = 0
    cdef uint64_t lines = 0
    rio_assert(e.scanned <= held)
    if e.by_line and e.max_line and (
        find_frame(buffer_start(&e.b), held, b"\n", 1, &e.scanned, SIZE_MAX, &n) == FOUND
    ):
        lines = 1
    else:
        n = echo_due(buffer_start(&e.b) + e.scanned, e.scanned, held - e.scanned, e.max_line, e.ended, &lines)
    e.ready = n
    e.scanned = 0 if n or e.max_line == 0 else held
    rio_add_relaxed(&e.lines, lines)
    if lines:
        rio_atomic_add(&e.totals.lines, lines)


cdef void echo_favour_no_more(echo_t *e) noexcept nogil:
    if e.favoured:
        held_shrink(&e.memory, &e.b)   # before another connection may use the reserve
        e.favoured = False
        share_favour_no_more(&e.memory)


cdef ssize_t echo_room(echo_t *e) noexcept nogil:
    """Reserve space to read into.

    Returns the number of bytes, 0 if the budget has no memory (wait for some), or -1 if the allocation fails.
    """
    cdef size_t held = buffer_held(&e.b)
    cdef size_t more, left
    if not buffer_fits(&e.b, held + 1):
        more = buffer_growth(&e.b, held + 1) - e.b.cap
        if not share_take(&e.memory, more):
            left = share_room(&e.memory)
            more = min(left, <size_t>CHUNK)
            if held == 0:
                more = CHUNK_MIN
                share_add(&e.memory, more)
            elif left < CHUNK_MIN or not share_take(&e.memory, more):
                e.favoured = e.favoured or share_favour(&e.memory, e.b.cap)
                left = share_reserve_room(&e.memory, e.b.cap) if e.favoured else 0
                if left < CHUNK_MIN:
                    return 0
                more = min(left, <size_t>CHUNK)
                share_add(&e.memory, more)
        if held_resize(&e.memory, &e.b, e.b.cap + more) < 0:
            return -1
    return min(buffer_room(&e.b), <size_t>CHUNK)


cdef void echo_drain(echo_t *e) noexcept nogil:
    e.phase = DRAINING
    e.deadline = deadline_after(e.drain)
    e.patience = patience(e.drain)


cdef answer echo_open(echo_t *e) noexcept nogil:
    """Take the PROXY header, if one is expected, from the buffer.

    Returns OPENED if it is complete or none is expected, INTERRUPTED if it is incomplete, or NO_HEADER.
    """
    cdef size_t used = 0
    cdef proxy_answer answer = PROXY_DONE
    if e.header != NULL and not e.header.done:
        answer = proxy_feed(e.header, buffer_start(&e.b), buffer_held(&e.b), &used)
        buffer_consume(&e.b, used)
    e.opening = buffer_held(&e.b) == 0
    return OPENED if answer == PROXY_DONE else NO_HEADER if answer == PROXY_WRONG else INTERRUPTED


cdef bint echo_is_unused(const echo_t *e, answer end) noexcept nogil:
    """Report whether the connection ended before its first byte, by EOF or a reset: a load balancer's check."""
    if not e.opening or (e.header != NULL and proxy_is_begun(e.header)):
        return False
    return end == DONE or (end == FAILED and (e.err == ECONNRESET or e.err == EPIPE))


cdef answer echo_turn(echo_t *e) noexcept nogil:
    """Echo until there is something to report."""
    cdef ssize_t count
    cdef unsigned int turns = 0
    cdef short events
    cdef int ready, wake_fd
    cdef int64_t until
    cdef bint looks, spares
    cdef answer opened
    cdef bint input_ended = False   # whether EOF arrived while waiting for memory
    # Checked here, because a peer that never stops sending keeps the loop below from ever waiting.
    if e.phase == ECHOING:
        if e.stop_fd >= 0 and fd_ready(e.stop_fd, POLLIN):
            echo_drain(e)
    elif rio_monotonic_ns() >= e.deadline:
        return TIMED_OUT
    while turns < TURNS:
        turns += 1
        # Send what is ready.
        if e.ready:
            rio_assert(e.ready <= buffer_held(&e.b))
            count = echo_send(&e.f, buffer_start(&e.b), e.ready, NULL, 0, e.totals, &e.err)
            if count > 0:
                buffer_consume(&e.b, count)
                e.ready -= count
                rio_add_relaxed(&e.bytes_out, count)
                e.moved = True
                if e.ready == 0:
                    echo_favour_no_more(e)
                if e.phase == ECHOING:
                    e.deadline = 0
                continue
            if count < 0 and e.err == EINTR:
                return INTERRUPTED
            if count < 0 and not would_block(e.err):
                return FAILED
            events = POLLOUT
        else:
            # Find more to send, first in the buffer, then in the input.
            echo_frame(e)
            if e.ready:
                if e.by_line:
                    return GOT_LINE
                continue
            if e.ended:
                if e.phase != DRAINING:
                    return DONE
                if shutdown(e.f.fd, SHUT_WR) < 0:
                    return DONE   # disconnected, or not a socket: nothing to linger for
                e.phase = LINGERING
                e.ended = False
                continue
            count = echo_room(e)
            if count < 0:
                e.err = ENOMEM
                return FAILED
            if count > 0:
                e.nap = 0
                count = fd_try_read(&e.f, e.b.data + e.b.w, count, &e.err)
                if count > 0:
                    if e.phase == LINGERING:
                        continue   # too late: discard them, the next read overwrites them
                    buffer_added(&e.b, count)
                    opened = INTERRUPTED
                    if e.opening:
                        opened = echo_open(e)
                        if opened == NO_HEADER:
                            return opened
                        count = buffer_held(&e.b)
                    if count and e.phase == ECHOING:   # a PROXY header is no progress
                        e.deadline = 0
                    rio_add_relaxed(&e.bytes_in, count)
                    rio_atomic_add(&e.totals.bytes_in, count)
                    e.moved = True
                    if opened != INTERRUPTED:
                        return opened
                    continue
                if count < 0 and e.err == EINTR:
                    return INTERRUPTED
                if count < 0 and not would_block(e.err):
                    return FAILED
                if count == 0 or (
                    e.phase == DRAINING and (rio_load_relaxed(&e.bytes_in) or rio_monotonic_ns() >= e.patience)
                ):
                    if e.opening and e.header != NULL and proxy_is_begun(e.header):
                        return NO_HEADER
                    e.ended = True
                    continue
                events = POLLIN
            elif e.phase == DRAINING or input_ended:
                # Every byte received is echoed before the close, even without a newline. Send the buffer now rather
                # than wait for memory: the connections that have it may be waiting for more themselves.
                input_ended = False
                e.ready = buffer_held(&e.b)
                e.scanned = 0
                if e.by_line:
                    return GOT_LINE
                continue
            else:
                events = PAUSED
                e.nap = min(max(e.nap * 2, <int>MEMORY_LOOK), <int>MEMORY_LOOK_MAX)
        # Nothing can be read or sent: wait. A signal that arrived before the wait would not interrupt it.
        if e.main_thread and e.moved:
            e.moved = False
            return INTERRUPTED
        # An idle connection holds no memory; but the next long line may follow at once, and new pages are expensive.
        spares = e.ready == 0 and e.b.cap > CHUNK and not e.slept and share_room(&e.memory) >= e.b.cap
        if e.ready == 0 and not spares:
            held_shrink(&e.memory, &e.b)
        if e.deadline == 0:
            e.deadline = deadline_after(e.timeout)
            if events == POLLOUT:
                e.unacknowledged = rio_unacknowledged(e.f.fd)
        wake_fd = e.stop_fd if e.phase == ECHOING else -1
        looks = events == POLLOUT and e.phase == ECHOING and e.timeout > 0
        until = min(e.deadline, deadline_after(e.timeout // LOOKS)) if looks else e.deadline
        if spares:
            until = min(until, deadline_after(SPARE_KEPT))
        if events == PAUSED:
            until = min(until, deadline_after(e.nap * <int64_t>1_000_000))
        if events == POLLIN and e.phase == DRAINING:
            until = min(until, e.patience)
        ready = fd_wait_or_wake(e.f.fd, events, wake_fd, until, &e.err)
        e.slept = ready == 0
        if ready < 0:
            return INTERRUPTED if e.err == EINTR else FAILED
        if ready == 0:
            if looks and peer_took(e.f.fd, &e.unacknowledged):
                e.deadline = 0
            elif until == e.deadline:
                return TIMED_OUT
            continue
        if ready == WOKEN:
            echo_drain(e)
        elif events == PAUSED:
            e.err = rio_socket_error(e.f.fd) if e.f.kind == FD_SOCKET else 0
            if e.err:
                return FAILED
            input_ended = True
    return INTERRUPTED


@cython.final
@cython.no_gc_clear   # __dealloc__ returns memory to the share
cdef class Echo:
    """The echo of one descriptor, run by ``run()``, with its counts. The caller owns the descriptor.

    ``timeout`` is the time in seconds without progress; None means no limit. A line longer than ``max_line`` bytes is
    echoed in pieces; 0 means no limit. When the descriptor ``stop_fd`` becomes readable, the echo drains: it echoes
    what has arrived, half-closes and reads to EOF, for at most ``drain_timeout`` seconds (None: no limit). ``on_line``
    is called with the length of each line before it is sent. The counts are added to ``counts``. The buffer is taken
    from the budget ``memory``.

    With ``proxied`` the connection begins with a PROXY header, which is not echoed. ``on_opened(source, first)`` is
    called when it has been read and when the first bytes to be echoed have (``first``), once if both arrive together;
    ``source`` is the address in the header, as bytes, or None. What it raises ends ``run()``.
    """

    cdef echo_t e
    cdef rio_flag running
    cdef object on_line
    cdef object on_opened
    cdef object source
    cdef proxy_t header
    cdef answer end      # the last one of echo_turn()
    cdef Counts counts
    cdef Share share

    def __cinit__(
        self,
        fd,
        framing="line",
        *,
        timeout=None,
        max_line=1 << 20,
        stop_fd=-1,
        drain_timeout=5.0,
        on_line=None,
        on_opened=None,
        bint proxied=False,
        Counts counts=None,
        MemoryBudget memory=None,
    ):
        buffer_init(&self.e.b, CHUNK)
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        stream = stream_of(fd)
        if is_tls(stream) or hasattr(stream, "read_buffered"):
            raise TypeError("echo is for raw descriptors; over TLS use a Rio: for line in rio: rio.write(line)")
        self.e.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
        self.e.by_line = on_line is not None
        self.on_line = on_line
        self.on_opened = on_opened
        self.e.opening = proxied or on_opened is not None
        if proxied:
            self.e.header = &self.header
        self.counts = counts
        self.e.totals = &self.e.spare if counts is None else counts.c
        self.share = Share(memory, max_line)
        self.e.memory = self.share.s
        self.e.timeout = to_nanoseconds(timeout)   # with 0 the loop returns TIMED_OUT instead of waiting
        self.e.drain = to_nanoseconds(drain_timeout)
        self.e.stop_fd = stop_fd
        self.source = fd
        open_stream(descriptor_of(fd), &self.e.f)
        if self.e.f.access != O_RDWR:
            raise UnsupportedOperation("echo needs a descriptor that is open for reading and writing")
        if fd_has_position(&self.e.f):
            raise UnsupportedOperation("a file cannot be echoed: it has one position for reading and writing")

    def __dealloc__(self):
        held_free(&self.e.memory, &self.e.b)

    def run(self):
        """Echo until EOF and until all bytes are sent. Returns the number of bytes sent.

        Raises ``TimeoutError`` after ``timeout`` seconds without progress (``BlockingIOError`` for a timeout of 0),
        and the ``OSError`` of the connection, EPIPE and ECONNRESET included. Calling it again continues. Raises
        ``ConcurrentCall`` if it is running already.
        """
        if not rio_flag_take(&self.running):
            raise ConcurrentCall("this echo is running already, in another thread or under this signal handler")
        try:
            threading = sys.modules.get("threading")   # if not imported, Python knows of one thread only
            # Compare numbers, because current_thread() may have to create an object.
            self.e.main_thread = threading is None or threading.main_thread().ident == threading.get_ident()
            return self.loop()
        finally:
            rio_flag_put(&self.running, RIO_FREE)

    cdef object loop(self):
        cdef answer what
        while True:
            check_source(self.source, self.e.f.fd)   # a signal handler or on_line() may have closed it
            with nogil:
                what = echo_turn(&self.e)
            self.end = what
            if what == OPENED:
                self.open()
            elif what == NO_HEADER:
                raise ValueError("no valid PROXY header")
            elif what == DONE:
                return rio_load_relaxed(&self.e.bytes_out)
            elif what == GOT_LINE:
                self.on_line(self.e.ready)
            elif what == INTERRUPTED:
                PyErr_CheckSignals()
            elif what == FAILED:
                raise os_error(self.e.err)
            elif self.e.timeout == 0:
                raise BlockingIOError(EAGAIN, "the echo would have to wait, and its timeout is 0")
            else:
                raise TimeoutError("no progress within the timeout")

    cdef object open(self):
        """Report the PROXY header or the first bytes."""
        source = None
        if self.on_opened is None:
            return
        if self.e.header != NULL and self.header.source.kind != RIO_SOURCE_UNKNOWN:
            source = PyBytes_FromStringAndSize(<const char *>&self.header.source, sizeof(rio_source))
        self.on_opened(source, not self.e.opening)

    @property
    def is_unused(self):
        """Whether ``run()`` has ended before the first byte, by EOF or a reset: a load balancer's check."""
        return echo_is_unused(&self.e, self.end)

    @property
    def bytes_in(self):
        """The number of bytes received."""
        return rio_load_relaxed(&self.e.bytes_in)

    @property
    def bytes_out(self):
        """The number of bytes sent."""
        return rio_load_relaxed(&self.e.bytes_out)

    @property
    def lines(self):
        """The number of whole lines received; 0 for raw framing."""
        return rio_load_relaxed(&self.e.lines)

    @property
    def draining(self):
        """Whether the stop was requested."""
        return self.e.phase != ECHOING

    def unsent(self):
        """Return a copy of the bytes received and not yet sent. Raises ``ConcurrentCall`` while ``run()`` runs."""
        if rio_flag_state(&self.running) != RIO_FREE:
            raise ConcurrentCall("this echo is running")
        return PyBytes_FromStringAndSize(buffer_start(&self.e.b), buffer_held(&self.e.b))


def echo(fd, framing="line", *, timeout=None):
    """Send back what is received from a descriptor until EOF (the book's ``echo()``, CS:APP 11.4.9).

    ``fd`` is an int or an object with ``fileno()``, open for reading and writing; it is left open. ``framing`` is
    ``"line"``, which echoes whole lines, a line of more than 1 MiB in pieces, and an unterminated last line at EOF; or
    ``"raw"``, which echoes bytes as they arrive (RFC 862). ``timeout`` is the time in seconds without progress; None
    means no limit, and with 0 the call does not block.

    Returns the number of bytes echoed. The GIL is released while it runs; signal handlers run. Raises
    ``TimeoutError`` after the timeout (``BlockingIOError`` for 0), and the ``OSError`` of the connection,
    ``BrokenPipeError`` and ``ConnectionResetError`` included. The error's ``characters_written`` is the number of bytes
    echoed, and its ``unsent`` the bytes received and not echoed. Raises ``TypeError`` for a TLS socket, a Rio and a
    socket that carries packets, ``ValueError`` for a file object whose buffer may hold bytes, and
    ``io.UnsupportedOperation`` for a descriptor that is not open for both, or is a file.
    """
    e = Echo(fd, framing, timeout=timeout)
    try:
        return e.run()
    except BaseException as error:
        try:
            error.characters_written = e.bytes_out
            error.unsent = e.unsent()
        except (AttributeError, TypeError):
            pass   # an exception raised by a signal handler, without these attributes
        raise

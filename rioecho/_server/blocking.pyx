"""The book's echo() for one descriptor, without the GIL (CS:APP 11.4.9).

All of its state is in one C struct, and the loop (`echo_turn`) only ever answers with a code. Whoever runs it takes
the GIL back to do what needs Python - run signal handlers, log a line, raise - and then calls it again: nothing is
lost by leaving it at any point.

Input is read only when all that may go back has gone back, so a peer that sends and never reads is not read from.
"""

import sys
from io import UnsupportedOperation

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, ENOMEM
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
from rioecho._core.convert cimport check_source, descriptor_of, is_tls, os_error, to_nanoseconds, to_size
from rioecho._core.counts cimport Counts
from rioecho._core.fdio cimport (
    FD_SOCKET,
    WOKEN,
    deadline_after,
    fd_open,
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
    peer_took,
)

from rioecho.errors import ConcurrentCall


cdef enum:
    TURNS = 1024               # system calls between two looks at the signals and at the drain's deadline
    SPARE_KEPT = 100_000_000   # nanoseconds for which the memory of a long line is kept for the next


cdef void echo_frame(echo_t *e) noexcept nogil:
    """Set `ready`: the whole lines that are held (one, if by_line), or what goes back although it is no line."""
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
        held_shrink(&e.memory, &e.b)   # before the next one can have the reserve
        e.favoured = False
        share_favour_no_more(&e.memory)


cdef ssize_t echo_room(echo_t *e) noexcept nogil:
    """Make room to read into: how many bytes; 0: what is held has to wait for memory; -1: there is none."""
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


cdef answer echo_turn(echo_t *e) noexcept nogil:
    """Echo until there is something to report."""
    cdef ssize_t count
    cdef unsigned int turns = 0
    cdef short events
    cdef int ready, wake_fd
    cdef int64_t until
    cdef bint looks, spares
    cdef bint input_ended = False   # while it waited for memory
    # A peer that never stops sending, so that nothing below ever waits, must not keep us.
    if e.phase == ECHOING:
        if e.stop_fd >= 0 and fd_ready(e.stop_fd, POLLIN):
            echo_drain(e)
    elif rio_monotonic_ns() >= e.deadline:
        return TIMED_OUT
    while turns < TURNS:
        turns += 1
        # Send what may go back.
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
            # Find more of it, in what is held and then in what has arrived.
            echo_frame(e)
            if e.ready:
                if e.by_line:
                    return GOT_LINE
                continue
            if e.ended:
                if e.phase != DRAINING:
                    return DONE
                if shutdown(e.f.fd, SHUT_WR) < 0:
                    return DONE   # no connection any more, or no socket: nothing to linger for
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
                        continue   # too late for these: they stay where the next read overwrites them
                    if e.phase == ECHOING:
                        e.deadline = 0
                    buffer_added(&e.b, count)
                    rio_add_relaxed(&e.bytes_in, count)
                    rio_atomic_add(&e.totals.bytes_in, count)
                    e.moved = True
                    continue
                if count < 0 and e.err == EINTR:
                    return INTERRUPTED
                if count < 0 and not would_block(e.err):
                    return FAILED
                if count == 0 or e.phase == DRAINING:
                    e.ended = True
                    continue
                events = POLLIN
            elif e.phase == DRAINING or input_ended:
                # All that came goes back before the end, line or not. What is held does so now, for the others that
                # have memory may wait for more of it too.
                input_ended = False
                e.ready = buffer_held(&e.b)
                e.scanned = 0
                if e.by_line:
                    return GOT_LINE
                continue
            else:
                events = PAUSED
                e.nap = min(max(e.nap * 2, <int>MEMORY_LOOK), <int>MEMORY_LOOK_MAX)
        # Nothing moves: wait. A signal that came while bytes moved would not end the wait.
        if e.main_thread and e.moved:
            e.moved = False
            return INTERRUPTED
        # An idle connection holds no memory; but the next long line may come at once, and new pages are dear.
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
@cython.no_gc_clear   # __dealloc__ gives memory back to the share
cdef class Echo:
    """The echo of one descriptor, with its counts; run() does it. The descriptor stays open and is the caller's.

    max_line: a longer line goes back in pieces. stop_fd: a descriptor; when it becomes readable, what has arrived is
    echoed, this side of the connection closed, and the peer's end awaited, for at most drain_timeout seconds. on_line:
    called with the length of each line before it goes back. counts: a Counts to add to. memory: the budget that the
    buffer is taken from.
    """

    cdef echo_t e
    cdef rio_flag running
    cdef object on_line
    cdef object source
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
        Counts counts=None,
        MemoryBudget memory=None,
    ):
        buffer_init(&self.e.b, CHUNK)
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        if is_tls(fd):
            raise TypeError("echo is for raw descriptors; over TLS use a Rio: for line in rio: rio.write(line)")
        self.e.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
        self.e.by_line = on_line is not None
        self.on_line = on_line
        self.counts = counts
        self.e.totals = &self.e.spare if counts is None else counts.c
        self.share = Share(memory, max_line)
        self.e.memory = self.share.s
        self.e.timeout = to_nanoseconds(timeout)   # 0 answers TIMED_OUT where it would have to wait
        self.e.drain = to_nanoseconds(drain_timeout)
        self.e.stop_fd = stop_fd
        self.source = fd
        err = fd_open(&self.e.f, descriptor_of(fd))
        if err:
            raise os_error(err)
        if self.e.f.access != O_RDWR:
            raise UnsupportedOperation("echo needs a descriptor that is open for reading and for writing")

    def __dealloc__(self):
        held_free(&self.e.memory, &self.e.b)

    def run(self):
        """Echo until the input ends and all of it has gone back; returns the number of bytes that did.

        Raises TimeoutError (BlockingIOError with a timeout of 0) after that many seconds without progress, and the
        OSError of the connection, EPIPE and ECONNRESET included. Calling it again goes on.
        """
        if not rio_flag_take(&self.running):
            raise ConcurrentCall("this echo is running already, in another thread or under this signal handler")
        try:
            threading = sys.modules.get("threading")   # not imported: there is one thread that Python knows of
            # By number: to look for the thread's object may have to make one.
            self.e.main_thread = threading is None or threading.main_thread().ident == threading.get_ident()
            return self.loop()
        finally:
            rio_flag_put(&self.running, RIO_FREE)

    cdef object loop(self):
        cdef answer what
        while True:
            check_source(self.source, self.e.f.fd)   # a handler may have closed it, or whoever logs a line
            with nogil:
                what = echo_turn(&self.e)
            if what == DONE:
                return rio_load_relaxed(&self.e.bytes_out)
            if what == GOT_LINE:
                self.on_line(self.e.ready)
            elif what == INTERRUPTED:
                PyErr_CheckSignals()
            elif what == FAILED:
                raise os_error(self.e.err)
            elif self.e.timeout == 0:
                raise BlockingIOError(EAGAIN, "the echo would have to wait, and its timeout is 0")
            else:
                raise TimeoutError("no progress within the time allowed")

    @property
    def bytes_in(self):
        """Bytes received."""
        return rio_load_relaxed(&self.e.bytes_in)

    @property
    def bytes_out(self):
        """Bytes sent back."""
        return rio_load_relaxed(&self.e.bytes_out)

    @property
    def lines(self):
        """Lines received, newline and all; raw framing counts none."""
        return rio_load_relaxed(&self.e.lines)

    @property
    def draining(self):
        """Whether it has been told to stop."""
        return self.e.phase != ECHOING

    def unsent(self):
        """The bytes received that have not gone back, as a copy; not while it is running."""
        if rio_flag_state(&self.running) != RIO_FREE:
            raise ConcurrentCall("this echo is running")
        return PyBytes_FromStringAndSize(buffer_start(&self.e.b), buffer_held(&self.e.b))


def echo(fd, framing="line", *, timeout=None):
    """Echo what comes from a descriptor back to it, to the end of the input (the book's echo(), CS:APP 11.4.9).

    fd: an int or an object with fileno(), for reading and writing; it is left open. framing: "line" sends whole lines
    back, a line of more than 1 MiB in pieces, and what is left at the end; "raw" sends bytes back as they come.
    timeout: seconds without progress; None waits for ever.

    Returns the number of bytes echoed. The GIL is not held meanwhile; signal handlers run. Raises TimeoutError, and
    the OSError of the connection (BrokenPipeError and ConnectionResetError included); the error's `characters_written`
    bytes had been echoed then, and its `unsent` are the bytes received that had not.
    """
    e = Echo(fd, framing, timeout=timeout)
    try:
        return e.run()
    except BaseException as error:
        try:
            error.characters_written = e.bytes_out
            error.unsent = e.unsent()
        except (AttributeError, TypeError):
            pass   # an exception of a signal handler's that takes no attributes
        raise

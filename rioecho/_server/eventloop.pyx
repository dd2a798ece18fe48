"""Many connections echoed by one thread: the event loop of one worker (CS:APP 12.2, with epoll in the place of select).

All of its state is in C structs and it runs without the GIL; it takes the GIL only to report connections that have gone
and lines, where that was asked for.

A connection holds memory only for what it has sent and not got back. Everything is received into one area, which the
worker's connections share; whole lines are sent straight from it, behind the part of a line that came before. Only
what the peer does not take, or what is no whole line yet, is copied into a buffer of the connection's own. Where the
memory of all is used up, a connection that holds the beginning of a line waits until there is some.

A connection that has something to send back is not read from. Each gets one read per turn, so one that never stops
sending does not starve the others.
"""

import logging

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, SIZE_MAX, int64_t
from libc.string cimport memmove

from rioecho._core.budget cimport MemoryBudget, Share
from rioecho._core.convert cimport os_error, to_nanoseconds, to_size
from rioecho._core.counts cimport Counts
from rioecho._core.poller cimport poller_add, poller_close, poller_create
from rioecho._core.posix cimport (
    F_GETFL,
    F_SETFD,
    F_SETFL,
    FD_CLOEXEC,
    O_NONBLOCK,
    POLLIN,
    RIO_FREE,
    close,
    fcntl,
    getpid,
    pipe,
    rio_assert,
    rio_bool_set,
    rio_flag,
    rio_flag_put,
    rio_flag_take,
    rio_load_relaxed,
    rio_monotonic_ns,
    rio_no_sigpipe,
    rio_wait_ns,
    write,
)
from rioecho._server.accepted cimport Accepted
from rioecho._server.connection cimport CUT_OFF, REASONS_N, conn_close
from rioecho._server.echo cimport CHUNK, LOOKS, MEMORY_LOOK
from rioecho._server.loop cimport LENGTHS_MAX, REPORTED_MAX, conn_t, loop_spares_free, loop_t
from rioecho._server.turns cimport loop_take_inbox, loop_turns

log = logging.getLogger("rioecho.server")


cdef enum:
    LAST_REPORTS = 100   # attempts to report what has gone, at the end of run()
    QUIET = 10           # seconds in which no second error of a callback is logged


cdef int make_pipe(int *ends) noexcept nogil:
    """A pipe, close-on-exec, whose reading never waits: 0, or the errno."""
    cdef int i
    if pipe(ends) < 0:
        return errno
    for i in range(2):
        fcntl(ends[i], F_SETFD, FD_CLOEXEC)
    fcntl(ends[0], F_SETFL, fcntl(ends[0], F_GETFL) | O_NONBLOCK)
    return 0


cdef int hand_over(int outbox, conn_t *c) noexcept nogil:
    """Put a connection into the inbox, once that has room: all of the pointer, or nothing and the errno."""
    while write(outbox, &c, sizeof(c)) < 0:   # all or nothing: see PIPE_BUF in pipe(7)
        if errno != EINTR:
            return errno
    return 0


@cython.final
@cython.no_gc_clear   # __dealloc__ counts the connections that it closes: a collection must not take `counts` before
cdef class EventLoop:
    """The event loop of one worker; run() runs it, in a thread of its own, and adopt() gives it connections.

    Timeouts in seconds, None for ever. max_line: a longer line goes back in pieces; 0 for no limit. stop_fd: a
    descriptor; when it becomes readable, what has arrived is echoed, each connection half-closed and its peer's end
    awaited, for at most drain_timeout. memory: the budget that what connections keep is taken from. without_epoll: use
    poll(2), as where there is no epoll.

    The callbacks are called in the loop's thread. on_closed(peer, reason, errno, bytes_out): for each connection that
    was adopted with a peer, and for each at all while report_closings(True) holds; reason is one of REASONS. When it
    raises MemoryError it is called again later. on_line(n), if not None: for each line, n bytes long, a few hundred in one
    turn of the loop. Other exceptions of theirs are logged, at most one in ten seconds.
    """

    REASONS = ("end of input", "idle timeout", "server stopped", "drain timeout", "error")

    cdef loop_t l
    cdef bint begun      # the fields are set
    cdef int owner       # the process that they were set in
    cdef rio_flag running
    cdef int outbox      # the other end of the inbox, or -1
    cdef object on_closed
    cdef object on_line
    cdef int64_t quiet_until   # no error of a callback is logged
    cdef Share share
    cdef readonly Counts counts

    def __cinit__(
        self,
        framing,
        *,
        idle_timeout,
        max_line,
        drain_timeout,
        int stop_fd,
        on_closed,
        on_line=None,
        MemoryBudget memory=None,
        bint without_epoll=False,
    ):
        cdef int ends[2]
        cdef int err
        self.outbox = self.l.inbox = self.l.poller.epoll = -1
        self.l.all.next = self.l.all.prev = &self.l.all
        self.l.waiting.next = self.l.waiting.prev = &self.l.waiting
        self.l.chunk = CHUNK
        self.l.look = INT64_MAX
        self.begun = True
        self.owner = getpid()
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        self.l.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
        self.l.idle = to_nanoseconds(idle_timeout)
        self.l.pause = max(self.l.idle // LOOKS, <int64_t>1)
        self.l.drain = to_nanoseconds(drain_timeout)
        self.l.stop_fd = stop_fd
        self.on_closed = on_closed
        self.on_line = on_line
        self.counts = Counts()
        self.l.counts = self.counts.c
        self.share = Share(memory, max_line)
        self.l.memory = self.share.s
        if on_line is not None:
            self.l.lengths = <size_t *>PyMem_RawMalloc(LENGTHS_MAX * sizeof(size_t))
            if self.l.lengths == NULL:
                raise MemoryError
        self.l.area = <char *>PyMem_RawMalloc(CHUNK)
        if self.l.area == NULL:
            raise MemoryError
        err = make_pipe(ends)
        if err:
            raise os_error(err)
        self.l.inbox, self.outbox = ends[0], ends[1]
        err = poller_create(&self.l.poller, without_epoll)
        if not err:
            err = poller_add(&self.l.poller, self.l.inbox, POLLIN, &self.l.inbox)
        if not err:
            err = poller_add(&self.l.poller, stop_fd, POLLIN, &self.l.stop_fd)
        if err:
            raise os_error(err)

    def __dealloc__(self):
        # A forked child's copy shares the poller, the inbox and the counts with the parent, who needs them.
        if self.begun and getpid() == self.owner:
            self.give_back()

    def close(self):
        """Close every connection that is left, and all else. Not while run() runs: RuntimeError."""
        if not rio_flag_take(&self.running):
            raise RuntimeError("this event loop is running")
        self.give_back()
        rio_flag_put(&self.running, RIO_FREE)

    def adopt(self, connection, peer=None):
        """Take over a connected stream socket, which run() serves and closes; not after no_more().

        connection: an Accepted, which is taken, or a descriptor. peer: anything, for on_closed. Raises MemoryError,
        and then the connection is still the caller's.
        """
        cdef Accepted accepted = connection if isinstance(connection, Accepted) else None
        cdef int fd = connection if accepted is None else accepted.fd
        cdef conn_t *c
        cdef int err
        if self.outbox < 0:
            raise ValueError("this event loop takes no more connections")
        c = <conn_t *>PyMem_RawCalloc(1, sizeof(conn_t))
        if c == NULL:
            raise MemoryError
        c.fd = fd
        rio_no_sigpipe(fd)
        if peer is not None:
            Py_INCREF(peer)
            c.peer = <PyObject *>peer
        if accepted is not None:
            accepted.take()   # before the loop can count its end
        with nogil:
            err = hand_over(self.outbox, c)
        if err:
            if accepted is not None:
                accepted.put_back()
            self.release(c)
            raise os_error(err)
        if accepted is not None:
            accepted.detach()

    def no_more(self):
        """No connection will come any more: run() returns when the last one has gone."""
        if self.outbox >= 0:
            with nogil:
                hand_over(self.outbox, NULL)
            close(self.outbox)
            self.outbox = -1

    def report_closings(self, bint wanted):
        """Call on_closed for every connection that is closed from now on, or again only for those with a peer."""
        rio_bool_set(&self.l.report_closings, wanted)

    def run(self):
        """Serve until no_more() was called and the last connection has gone.

        Raises OSError if waiting fails; every connection is closed then.
        """
        cdef bint again = True
        cdef int err = 0
        if not rio_flag_take(&self.running):
            raise RuntimeError("this event loop is running already")
        try:
            while again:
                with nogil:
                    again = loop_turns(&self.l, &err)
                self.report()
                if err:
                    self.give_back()
                    raise os_error(err)
            while self.l.lengths_n:
                self.report()
            for _ in range(LAST_REPORTS):
                if self.l.again == NULL:
                    break
                with nogil:
                    rio_wait_ns(-1, MEMORY_LOOK * 1_000_000)
                self.l.gone = self.l.again
                self.l.again = NULL
                self.report()
        finally:
            rio_flag_put(&self.running, RIO_FREE)

    # A callback that has no memory, as one may be that logs, must cost neither the loop nor the report. So nothing here
    # allocates: an except clause that only passes does not even make the exception whole.

    cdef void report(self) noexcept:
        """Call back for what has been put down."""
        cdef size_t i
        cdef conn_t *c
        cdef size_t n = min(self.l.lengths_n, <size_t>REPORTED_MAX)
        for i in range(n):
            self.report_line(self.l.lengths[i])
        self.l.lengths_n -= n
        if self.l.lengths_n:
            memmove(self.l.lengths, self.l.lengths + n, self.l.lengths_n * sizeof(size_t))
        while self.l.gone != NULL:
            c = self.l.gone
            self.l.gone = c.next
            if self.report_closing(c):
                self.release(c)
            else:
                c.next = self.l.again
                self.l.again = c
                self.l.look = min(self.l.look, self.l.now + MEMORY_LOOK * 1_000_000)

    cdef void report_line(self, size_t n) noexcept:
        """Report one line; no memory for it is no error."""
        try:
            self.on_line(n)
        except MemoryError:
            pass
        except BaseException as error:
            self.complain(error)

    cdef bint report_closing(self, conn_t *c) noexcept:
        """Report a connection that has gone; False where there is no memory for it."""
        rio_assert(c.why < REASONS_N)
        try:
            peer = None if c.peer == NULL else <object>c.peer
            self.on_closed(peer, EventLoop.REASONS[<int>c.why], c.err, c.bytes_out)
            return True
        except MemoryError:
            pass
        except BaseException as error:
            self.complain(error)
            return True
        return False

    cdef void complain(self, error) noexcept:
        """Log what a callback raised, unless one has been logged lately."""
        cdef int64_t now = rio_monotonic_ns()
        if now < self.quiet_until:
            return
        self.quiet_until = now + <int64_t>QUIET * 1_000_000_000
        try:
            log.error("a callback of the event loop raised %s: %s", type(error).__name__, error)
        except BaseException:
            pass

    cdef void release(self, conn_t *c) noexcept:
        if c.peer != NULL:
            Py_DECREF(<object>c.peer)
        PyMem_RawFree(c)

    cdef void give_back(self) noexcept:
        """Close everything, those not yet taken from the inbox too, and free what is allocated. Again: does nothing."""
        cdef conn_t *c
        if self.outbox >= 0:
            close(self.outbox)   # so that reading ends
            self.outbox = -1
        if self.l.inbox >= 0:
            while not self.l.inbox_ended and loop_take_inbox(&self.l):
                pass
            close(self.l.inbox)
            self.l.inbox = -1
            self.l.inbox_ended = True
        while self.l.all.next != &self.l.all:
            conn_close(&self.l, self.l.all.next, CUT_OFF, 0)
        while self.l.gone != NULL or self.l.again != NULL:
            if self.l.gone == NULL:
                self.l.gone = self.l.again
                self.l.again = NULL
            c = self.l.gone
            self.l.gone = c.next
            self.release(c)
        loop_spares_free(&self.l)
        rio_assert(self.l.memory.budget == NULL or rio_load_relaxed(self.l.memory.taken) == 1)
        poller_close(&self.l.poller)
        PyMem_RawFree(self.l.area)
        self.l.area = NULL
        PyMem_RawFree(self.l.lengths)
        self.l.lengths = NULL
        self.l.lengths_n = 0

"""Many connections echoed by one thread: the event loop of one worker (CS:APP 12.2, with epoll in the place of select).

All of its state is in C structs and it runs without the GIL; it takes it back only to tell of connections that have
gone and of lines, where that was asked for.

A connection holds memory only for what it has sent and not got back. Everything is received into one area, which the
worker's connections share; whole lines are sent straight from it, behind the part of a line that came before. Only
what the peer does not take, or what is no whole line yet, is copied into a buffer of the connection's own.

A connection that has something to send back is not read from. Each gets one read per turn, so one that never stops
sending does not starve the others.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, SIZE_MAX, int64_t

from rioecho._core.convert cimport os_error, to_nanoseconds, to_size
from rioecho._server.accepted cimport Accepted
from rioecho._server.connection cimport (
    BROKEN,
    CUT_OFF,
    IDLE,
    append,
    conn_close,
    conn_read,
    conn_t,
    conn_write,
    look_later,
    loop_t,
    progress,
    ready,
)
from rioecho._core.counts cimport Counts
from rioecho._server.blocking cimport CHUNK, DRAINING, ECHOING, LOOKS, peer_took
from rioecho._core.fdio cimport deadline_after, fd_ready, milliseconds_until
from rioecho._core.poller cimport (
    READY_MAX,
    poller_add,
    poller_close,
    poller_create,
    poller_remove,
    poller_wait,
    ready_t,
)
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
    read,
    rio_bool_set,
    rio_flag,
    rio_flag_put,
    rio_flag_take,
    rio_monotonic_ns,
    rio_no_sigpipe,
    write,
)


# ---- all connections of a loop


cdef void conn_begin(loop_t *l, conn_t *c) noexcept nogil:
    cdef int err
    append(l, c)
    l.active += 1
    c.phase = DRAINING if l.stopping else ECHOING
    c.looks = 0
    c.deadline = INT64_MAX if l.idle < 0 else l.now + l.pause
    c.events = POLLIN
    err = poller_add(&l.poller, c.fd, POLLIN, c)
    if err:
        conn_close(l, c, BROKEN, err)


cdef bint take_inbox(loop_t *l) noexcept nogil:
    """Begin with the connections that were handed over. Were there any?

    Each pointer comes whole, for the pipe holds nothing else.
    """
    cdef conn_t *arrived[64]
    cdef ssize_t n, i
    n = read(l.inbox, arrived, sizeof(arrived)) // <ssize_t>sizeof(conn_t *)
    for i in range(n):
        if arrived[i] == NULL:
            poller_remove(&l.poller, l.inbox)
            l.inbox_ended = True
        else:
            conn_begin(l, arrived[i])
    return n > 0


cdef void begin_to_drain(loop_t *l) noexcept nogil:
    cdef conn_t *c = l.all.next
    l.stopping = True
    l.drained = deadline_after(l.drain)
    poller_remove(&l.poller, l.stop_fd)
    while c != &l.all:
        c.phase = DRAINING
        c = c.next


cdef bint drain_some(loop_t *l) noexcept nogil:
    """One read for each that may have more; is there one left that may?"""
    cdef conn_t *c = l.all.next
    cdef conn_t *following
    cdef bint more = False
    while c != &l.all:
        following = c.next
        if c.phase == DRAINING and ready(c) == 0:
            conn_read(l, c)
        c = following
    c = l.all.next
    while c != &l.all and not more:
        more = c.phase == DRAINING and ready(c) == 0
        c = c.next
    return more


cdef void expire(loop_t *l) noexcept nogil:
    """Look after those whose deadline is over, and close those whose time is."""
    cdef conn_t *c
    while l.stopping and l.all.next != &l.all and l.now >= l.drained:
        conn_close(l, l.all.next, CUT_OFF, 0)
    while not l.stopping and l.all.next != &l.all and l.now >= l.all.next.deadline:
        c = l.all.next
        c.looks += 1
        if ready(c) and peer_took(c.fd, &c.unacknowledged):
            progress(l, c)
            continue
        if c.looks < LOOKS:
            look_later(l, c)
            continue
        # It may be we who stood still (suspended, or short of a processor), and have not looked what has come.
        if fd_ready(c.fd, c.events):
            if ready(c):
                conn_write(l, c)
            else:
                conn_read(l, c)
            # If it is not the first any more it may be closed, and that memory must not be touched.
            if l.all.next != c or l.now < c.deadline:
                continue
        conn_close(l, c, IDLE, 0)


cdef int64_t next_deadline(const loop_t *l) noexcept nogil:
    if l.all.next == &l.all:
        return INT64_MAX
    return l.drained if l.stopping else l.all.next.deadline


cdef bint loop_turns(loop_t *l, int *err) noexcept nogil:
    """Run until there is something to tell, or an error (True), or all is done (False, and `inbox_ended`)."""
    cdef ready_t events[READY_MAX]
    cdef conn_t *c
    cdef int i, n
    # Whoever told may have come back in the middle of draining: some may have been read from, and not to the end.
    cdef bint more = l.stopping, stop, arrivals
    while l.active or not l.inbox_ended:
        n = poller_wait(&l.poller, events, 0 if more else milliseconds_until(next_deadline(l)), err)
        if n < 0 and err[0] != EINTR:
            return True
        l.now = rio_monotonic_ns()
        stop = arrivals = False
        for i in range(n):
            if events[i].data == &l.inbox:
                arrivals = True
            elif events[i].data == &l.stop_fd:
                stop = True
            else:
                c = <conn_t *>events[i].data
                if ready(c):
                    conn_write(l, c)
                else:
                    conn_read(l, c)
        # Not before the others: a connection that comes may get the memory of one that went, and its events.
        if stop:
            begin_to_drain(l)
        if arrivals:
            take_inbox(l)
        more = l.stopping and drain_some(l)
        expire(l)
        err[0] = 0
        if l.gone != NULL or l.lengths_n:
            return True
    return False


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
    """Put a connection into the inbox; waits while that is full. 0, or the errno."""
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
    awaited, for at most drain_timeout. on_closed(peer, reason, errno, bytes_out) is called, in the loop's thread, for
    each connection that was adopted with a peer, and for each at all while tell_closings(True) holds; reason is one of
    REASONS. on_line(n), if not None, for each line. without_epoll: use poll(2), as where there is no epoll.
    """

    REASONS = ("end of input", "idle timeout", "server stopped", "drain timeout", "error")

    cdef loop_t l
    cdef bint begun      # the fields are set
    cdef int owner       # the process that they were set in
    cdef rio_flag running
    cdef int outbox      # the other end of the inbox, or -1
    cdef object on_closed
    cdef object on_line
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
        bint without_epoll=False,
    ):
        cdef int ends[2]
        cdef int err
        self.outbox = self.l.inbox = self.l.poller.epoll = -1
        self.l.all.next = self.l.all.prev = &self.l.all
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
        self.l.tell_lines = on_line is not None
        self.counts = Counts()
        self.l.counts = self.counts.c
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

    def tell_closings(self, bint wanted):
        """Call on_closed for every connection that is closed from now on, or again only for those with a peer."""
        rio_bool_set(&self.l.tell_closings, wanted)

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
                self.tell()
                if err:
                    self.give_back()
                    raise os_error(err)
        finally:
            rio_flag_put(&self.running, RIO_FREE)

    cdef void tell(self) noexcept:
        """Call back for what has been put down."""
        cdef size_t i
        cdef conn_t *c
        for i in range(self.l.lengths_n):
            self.tell_line(self.l.lengths[i])
        self.l.lengths_n = 0
        while self.l.gone != NULL:
            c = self.l.gone
            self.l.gone = c.next
            self.tell_closing(c)
            self.release(c)

    # What the callbacks raise goes to sys.unraisablehook: a noexcept function's does. Not so where there is no memory
    # for a call: a traceback for each connection would help nobody.

    @cython.unraisable_tracebacks(False)
    cdef void tell_line(self, size_t n) noexcept:
        try:
            self.on_line(n)
        except MemoryError:
            pass

    @cython.unraisable_tracebacks(False)
    cdef void tell_closing(self, conn_t *c) noexcept:
        try:
            self.on_closed(
                None if c.peer == NULL else <object>c.peer, EventLoop.REASONS[<int>c.why], c.err, c.bytes_out
            )
        except MemoryError:
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
            while not self.l.inbox_ended and take_inbox(&self.l):
                pass
            close(self.l.inbox)
            self.l.inbox = -1
            self.l.inbox_ended = True
        while self.l.all.next != &self.l.all:
            conn_close(&self.l, self.l.all.next, CUT_OFF, 0)
        while self.l.gone != NULL:
            c = self.l.gone
            self.l.gone = c.next
            self.release(c)
        poller_close(&self.l.poller)
        PyMem_RawFree(self.l.area)
        self.l.area = NULL
        PyMem_RawFree(self.l.lengths)
        self.l.lengths = NULL
        self.l.lengths_n = self.l.lengths_cap = 0

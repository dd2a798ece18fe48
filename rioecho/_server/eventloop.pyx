"""The event loop of one worker, which echoes many connections in one thread (CS:APP 12.2, with epoll for select).

All of its state is in C structs, and it runs without the GIL, which it takes only to report closed connections and
lines, if requested.

A connection holds memory only for bytes received and not yet sent. All connections of the worker are read into one
shared area; whole lines are sent directly from it, after the beginning of the line from the connection's buffer. Only
bytes that the socket buffer has no room for, and incomplete lines, are copied into that buffer. When the memory budget
is used up, a connection that holds the beginning of a line waits for memory.

With raw framing, the bytes of a peer that sends much at a time are not copied at all (_server/bulk.pxd).

A connection with unsent bytes is not read from. Each connection gets one read per turn, so a peer that never stops
sending does not starve the others.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_INCREF, PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, SIZE_MAX, int64_t

from rioecho._core.budget cimport MemoryBudget, Share
from rioecho._core.buffer cimport buffer_free, buffer_init
from rioecho._core.convert cimport os_error, to_nanoseconds, to_size
from rioecho._core.counts cimport Counts
from rioecho._core.poller cimport poller_add, poller_close, poller_create, poller_init, poller_named, poller_t
from rioecho._core.posix cimport (
    F_DUPFD_CLOEXEC,
    F_GETFL,
    F_SETFL,
    O_NONBLOCK,
    POLLIN,
    RIO_FREE,
    close,
    fcntl,
    getpid,
    rio_assert,
    rio_bool_set,
    rio_flag,
    rio_flag_put,
    rio_flag_take,
    rio_load_relaxed,
    rio_no_sigpipe,
    rio_pipe,
    rio_wait_ns,
    write,
)
from rioecho._server.accepted cimport Accepted
from rioecho._server.bulk cimport bulk_close, bulk_open
from rioecho._server.connection cimport conn_close, conn_free
from rioecho._server.echo cimport CHUNK, LOOKS, MEMORY_LOOK
from rioecho._server.hosts cimport HostTable
from rioecho._server.proxy cimport proxy_t
from rioecho._server.handling cimport Handling
from rioecho._server.lineconnection cimport Connection
from rioecho._server.kept cimport loop_spares_free
from rioecho._server.loop cimport CUT_OFF, LENGTHS_MAX, PyThreadState_Get, conn_t, extras_t, loop_t
from rioecho._server.reports cimport Reports
from rioecho._server.turns cimport loop_take_inbox, loop_turns


cdef enum:
    LINGER = 30          # seconds for lingering while the server is not stopping, if draining has no limit
    LAST_REPORTS = 100   # maximum number of attempts to report closed connections at the end of run()


cdef int make_pipe(int *ends) noexcept nogil:
    """Create a pipe whose reading end is non-blocking. Returns 0, or the errno."""
    if rio_pipe(ends) < 0:
        return errno
    fcntl(ends[1], F_SETFL, fcntl(ends[1], F_GETFL) & ~O_NONBLOCK)   # hand_over() waits
    return 0


cdef int hand_over(int outbox, conn_t *c) noexcept nogil:
    """Write the pointer to a connection to the inbox, waiting while the pipe is full. Returns 0, or the errno."""
    while write(outbox, &c, sizeof(c)) < 0:   # atomic: see PIPE_BUF in pipe(7)
        if errno != EINTR:
            return errno
    return 0


def pollers():
    """Return the names of the pollers that this system has, the best first."""
    cdef poller_t p
    cdef int err
    found = []
    for name in ("epoll", "kqueue", "poll"):
        err = poller_create(&p, poller_named(name))
        poller_close(&p)
        if not err:
            found.append(name)
    return found


@cython.final
@cython.no_gc_clear   # __dealloc__ counts the connections that it closes, so the collector must not clear `counts`
cdef class EventLoop:
    """The event loop of one worker. ``run()`` runs it in a thread, and ``adopt()`` gives it connections.

    ``idle_timeout`` is the time in seconds that a connection may be without progress; None means no limit. A line
    longer than ``max_line`` bytes is echoed in pieces; 0 means no limit. When the descriptor ``stop_fd`` becomes
    readable, every connection drains: it echoes what has arrived, half-closes and reads to EOF, for at most
    ``drain_timeout`` seconds (None: no limit). The memory of the connections is taken from the budget ``memory``.
    ``poller`` is "epoll", "kqueue", "poll", or None for the best of the system.

    The callbacks are called in the thread of the loop:

    - ``on_closed(peer, reason, errno, bytes_out)`` for each closed connection that was adopted with a peer, and after
      ``report_closings(True)`` for every one; ``reason`` is one of the ``REASONS`` in reports.pyx.
    - ``on_opened(peer, source)``, if not None, when the first bytes of a connection that was adopted with a peer
      arrive; ``source`` is the address in its PROXY header, if there is one, as bytes, else None. What it returns
      replaces the peer. It is called again when the connection is closed.
    - ``on_line(n)``, if not None, for each line of n bytes, a few hundred in one turn of the loop.

    With ``proxied`` each connection begins with a PROXY header, which is not echoed. ``hosts`` counts the connections
    of each address: of those that are admitted, and with ``proxied`` of the headers.

    on_closed is called again later if it raises ``MemoryError``. Other exceptions are logged, at most one in ten
    seconds.
    """

    cdef loop_t l
    cdef bint begun      # whether the fields are set
    cdef int owner       # ID of the process that set them
    cdef rio_flag running
    cdef int own_stop_fd   # a duplicate for a loop with handlers, or -1
    cdef int outbox      # the writing end of the inbox, or -1
    cdef HostTable hosts
    cdef Handling handling
    cdef Reports reports
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
        on_opened=None,
        on_line=None,
        MemoryBudget memory=None,
        bint proxied=False,
        HostTable hosts=None,
        Handling handling=None,
        poller=None,
    ):
        cdef int ends[2]
        cdef int err
        self.own_stop_fd = self.outbox = self.l.inbox = self.l.wake = -1
        poller_init(&self.l.poller)
        self.l.all.next = self.l.all.prev = &self.l.all
        self.l.lingering.next = self.l.lingering.prev = &self.l.lingering
        self.l.waiting.next = self.l.waiting.prev = &self.l.waiting
        self.l.chunk = CHUNK
        self.l.look = INT64_MAX
        self.reports = Reports(on_closed, on_opened, on_line, handling)
        self.begun = True
        self.owner = getpid()
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        self.l.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
        self.l.idle = to_nanoseconds(idle_timeout)
        self.l.pause = max(self.l.idle // LOOKS, <int64_t>1)
        self.l.drain = to_nanoseconds(drain_timeout)
        self.l.linger = self.l.drain if self.l.drain >= 0 else <int64_t>LINGER * 1_000_000_000
        self.l.stop_fd = stop_fd
        self.l.proxied = proxied
        self.hosts = hosts
        self.l.hosts = NULL if hosts is None else &hosts.h
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
        err = poller_create(&self.l.poller, poller_named(poller))
        if not err:
            err = poller_add(&self.l.poller, self.l.inbox, POLLIN, &self.l.inbox)
        if not err and handling is not None:
            # The owner of stop_fd may close it while a handler blocks, and the loop must still see the stop.
            self.own_stop_fd = fcntl(stop_fd, F_DUPFD_CLOEXEC, 0)
            err = errno if self.own_stop_fd < 0 else 0
            self.l.stop_fd = self.own_stop_fd
        if not err:
            err = poller_add(&self.l.poller, self.l.stop_fd, POLLIN, &self.l.stop_fd)
        if not err and handling is not None:
            buffer_init(&self.l.out, CHUNK)
            self.l.wake = handling.wake.fd
            err = poller_add(&self.l.poller, self.l.wake, POLLIN, &self.l.wake)
            self.l.handler = &handling.h
            self.handling = handling
        elif not err and self.l.max_line == 0 and on_line is None:
            bulk_open(&self.l)
        if err:
            raise os_error(err)

    def __dealloc__(self):
        # In a forked child do nothing: it shares the poller, the inbox and the counts with the parent.
        if self.begun and getpid() == self.owner:
            self.release_all()

    def close(self):
        """Close all connections and release everything. Raises ``RuntimeError`` while ``run()`` runs."""
        if not rio_flag_take(&self.running):
            raise RuntimeError("this event loop is running")
        self.release_all()
        rio_flag_put(&self.running, RIO_FREE)

    def adopt(self, connection, peer=None):
        """Take over a connected stream socket, which ``run()`` serves and closes.

        ``connection`` is an ``Accepted``, which is taken, or a descriptor. ``peer`` is any object, passed to
        ``on_closed``. Raises ``ValueError`` after ``no_more()``, ``MemoryError`` or ``OSError``; the caller still owns
        the connection then.
        """
        cdef Accepted accepted = connection if isinstance(connection, Accepted) else None
        cdef int fd = connection if accepted is None else accepted.fd
        cdef conn_t *c
        cdef int err
        if self.outbox < 0:
            raise ValueError("this event loop accepts no more connections")
        c = <conn_t *>PyMem_RawCalloc(1, sizeof(conn_t))
        if c == NULL:
            raise MemoryError
        c.fd = fd
        if isinstance(peer, Connection) or self.l.proxied or (accepted is not None and accepted.host != NULL):
            c.extras = <extras_t *>PyMem_RawCalloc(1, sizeof(extras_t))
            if c.extras != NULL and self.l.proxied:
                c.extras.header = <proxy_t *>PyMem_RawCalloc(1, sizeof(proxy_t))
            if c.extras == NULL or (self.l.proxied and c.extras.header == NULL):
                conn_free(c)
                raise MemoryError
            if isinstance(peer, Connection):
                c.extras.outlet = &(<Connection>peer).outlet
        rio_no_sigpipe(fd)
        if peer is not None:
            Py_INCREF(peer)
            c.peer = <PyObject *>peer
        if accepted is not None:
            accepted.take()   # before the loop can count the close
            if c.extras != NULL:
                c.extras.host = accepted.detach_host()
        with nogil:
            err = hand_over(self.outbox, c)
        if err:
            if accepted is not None:
                if c.extras != NULL:
                    accepted.host = c.extras.host
                accepted.put_back()
            self.reports.release(c)
            raise os_error(err)
        if accepted is not None:
            accepted.detach()

    def no_more(self):
        """Declare that no connection will follow: ``run()`` returns when the last one is closed."""
        if self.outbox >= 0:
            with nogil:
                hand_over(self.outbox, NULL)
            close(self.outbox)
            self.outbox = -1

    def report_closings(self, bint wanted):
        """Call ``on_closed`` for every closed connection if ``wanted``, otherwise only for those with a peer."""
        rio_bool_set(&self.l.report_closings, wanted)

    def run(self):
        """Serve until ``no_more()`` was called and the last connection is closed.

        Raises ``OSError`` if waiting fails; all connections are closed then. Raises ``RuntimeError`` if it is running
        already.
        """
        cdef bint again = True
        cdef int err = 0
        if not rio_flag_take(&self.running):
            raise RuntimeError("this event loop is running already")
        if self.handling is not None:
            self.l.thread = PyThreadState_Get()
            self.handling.begin(&self.l)
        try:
            while again:
                with nogil:
                    again = loop_turns(&self.l, &err)
                self.reports.report(&self.l)
                if err:
                    self.release_all()
                    raise os_error(err)
            while self.l.lengths_n:
                self.reports.report(&self.l)
            for _ in range(LAST_REPORTS):
                if self.l.again == NULL:
                    break
                with nogil:
                    rio_wait_ns(-1, MEMORY_LOOK * 1_000_000)
                self.l.gone = self.l.again
                self.l.again = NULL
                self.reports.report(&self.l)
        finally:
            rio_flag_put(&self.running, RIO_FREE)

    cdef void release_all(self) noexcept:
        """Close all connections, those in the inbox included, and free all memory. A second call does nothing."""
        cdef conn_t *c
        if self.handling is not None:
            self.handling.end()
        if self.outbox >= 0:
            close(self.outbox)   # so that reading the inbox reaches EOF
            self.outbox = -1
        if self.l.inbox >= 0:
            while not self.l.inbox_ended and loop_take_inbox(&self.l):
                pass
            close(self.l.inbox)
            self.l.inbox = -1
            self.l.inbox_ended = True
        while self.l.all.next != &self.l.all:
            conn_close(&self.l, self.l.all.next, CUT_OFF, 0)
        while self.l.lingering.next != &self.l.lingering:
            conn_close(&self.l, self.l.lingering.next, CUT_OFF, 0)
        self.l.opened_n = 0
        while self.l.gone != NULL or self.l.again != NULL:
            if self.l.gone == NULL:
                self.l.gone = self.l.again
                self.l.again = NULL
            c = self.l.gone
            self.l.gone = c.next
            self.reports.release(c)
        loop_spares_free(&self.l)
        rio_assert(self.l.memory.budget == NULL or rio_load_relaxed(self.l.memory.taken) == 1)
        buffer_free(&self.l.out)
        poller_close(&self.l.poller)
        if self.own_stop_fd >= 0:
            close(self.own_stop_fd)
            self.own_stop_fd = -1
        bulk_close(&self.l)
        PyMem_RawFree(self.l.area)
        self.l.area = NULL
        PyMem_RawFree(self.l.lengths)
        self.l.lengths = NULL
        self.l.lengths_n = 0

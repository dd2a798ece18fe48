# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False, binding=False
# cython: boundscheck=False, wraparound=False, embedsignature=True, embedsignature.format=clinic
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
from cpython.exc cimport PyErr_WriteUnraisable
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EINTR, ENOMEM, errno
from libc.stdint cimport INT64_MAX, SIZE_MAX, int64_t, uint64_t
from libc.string cimport memchr

from rioecho._buffer cimport (
    buffer_consume,
    buffer_free,
    buffer_held,
    buffer_init,
    buffer_put,
    buffer_reserve,
    buffer_start,
    rio_buffer,
    whole_lines,
)
from rioecho._channel cimport os_error, to_nanoseconds
from rioecho._counts cimport Counts, counts_t
from rioecho._echoloop cimport CHUNK, DRAINING, ECHOING, LINGERING, phase
from rioecho._fdio cimport (
    FD_SOCKET,
    deadline_after,
    fd_read,
    fd_write,
    fd_write_both,
    milliseconds_until,
    rio_fd,
    would_block,
)
from rioecho._poller cimport (
    READY_MAX,
    poller_add,
    poller_close,
    poller_create,
    poller_modify,
    poller_remove,
    poller_t,
    poller_wait,
    ready_t,
)
from rioecho._posix cimport (
    F_GETFL,
    F_SETFD,
    F_SETFL,
    FD_CLOEXEC,
    O_NONBLOCK,
    O_RDWR,
    POLLIN,
    POLLOUT,
    RIO_FREE,
    SHUT_WR,
    close,
    fcntl,
    pipe,
    read,
    rio_bool_get,
    rio_bool_set,
    rio_count_add,
    rio_flag_put,
    rio_flag_take,
    rio_monotonic_ns,
    rio_no_sigpipe,
    shutdown,
    write,
)
from rioecho._reader cimport to_size


cdef enum reason:
    ENDED       # the input has, and all of it has gone back
    IDLE        # no progress for the time allowed
    STOPPED     # the server was, and the connection has been seen off
    CUT_OFF     # the server was stopped, and the time to drain is over
    BROKEN      # by an error


cdef struct conn_t:
    rio_fd f
    rio_buffer b         # received and not yet sent back
    size_t ready         # of those, how many may go back now; the others are the beginning of a line
    uint64_t bytes_out
    int64_t deadline     # for the next progress
    conn_t *prev         # those of the loop, in the order of their deadlines
    conn_t *next
    PyObject *peer       # who is told of its end and how the peer is called, or NULL
    short events         # what is waited for
    bint ended           # the input has
    phase phase
    reason why           # it was closed
    int err


cdef struct loop_t:
    poller_t poller
    conn_t all           # the ends of the list of connections
    conn_t *gone         # those closed, to be told of
    char *area           # CHUNK bytes for what is received
    size_t active
    int stop_fd          # readable when it is time to stop
    int inbox            # a pipe of conn_t pointers; NULL says that no more will come, for a fork may hide its end
    bint inbox_ended
    bint stopping
    int64_t now          # at the beginning of this turn
    int64_t idle         # nanoseconds without progress, or -1
    int64_t drain        # nanoseconds for draining and lingering
    int64_t drained      # when that time is over
    size_t max_line      # a longer line goes back in pieces; 0: raw
    counts_t *counts
    int tell_closings    # also of connections without a peer
    bint tell_lines
    size_t *lengths      # of the lines to be told of
    size_t lengths_n
    size_t lengths_cap


# ---- the list of connections


cdef inline void append(loop_t *l, conn_t *c) noexcept nogil:
    c.prev = l.all.prev
    c.next = &l.all
    c.prev.next = c
    l.all.prev = c


cdef inline void unlink(conn_t *c) noexcept nogil:
    c.prev.next = c.next
    c.next.prev = c.prev


cdef inline void progress(loop_t *l, conn_t *c) noexcept nogil:
    """Renew the deadline. All have the same time, so the last renewed is the last in order."""
    if l.idle < 0 or c.phase != ECHOING:
        return
    c.deadline = l.now + l.idle
    if c.next != &l.all:
        unlink(c)
        append(l, c)


# ---- one connection


cdef void conn_close(loop_t *l, conn_t *c, reason why, int err) noexcept nogil:
    poller_remove(&l.poller, c.f.fd)
    close(c.f.fd)
    buffer_free(&c.b)
    unlink(c)
    l.active -= 1
    if why == BROKEN:
        rio_count_add(&l.counts.errors, 1)
    # Now, and not before: who sees it counted may rely on the descriptor being free.
    rio_count_add(&l.counts.closed, 1)
    if c.peer != NULL or rio_bool_get(&l.tell_closings):
        c.why = why
        c.err = err
        c.next = l.gone
        l.gone = c
    else:
        PyMem_RawFree(c)


cdef void wait_for(loop_t *l, conn_t *c, short events) noexcept nogil:
    cdef int err
    if c.events == events:
        return
    err = poller_modify(&l.poller, c.f.fd, events, c)
    if err:
        conn_close(l, c, BROKEN, err)
        return
    c.events = events


cdef void next_step(loop_t *l, conn_t *c) noexcept nogil:
    """Having moved what could be moved: wait for more room, or for more input, or go on towards the end."""
    if c.ready:
        wait_for(l, c, POLLOUT)
        return
    if not c.ended:
        wait_for(l, c, POLLIN)
        return
    if c.phase == ECHOING:
        conn_close(l, c, ENDED, 0)
        return
    # Closing over unread input would send a reset, which discards what is on its way to the peer.
    if shutdown(c.f.fd, SHUT_WR) < 0:
        conn_close(l, c, STOPPED, 0)   # the connection has gone
        return
    c.phase = LINGERING
    c.ended = False
    buffer_free(&c.b)
    wait_for(l, c, POLLIN)


cdef ssize_t conn_send(
    loop_t *l, conn_t *c, const char *first, size_t n, const char *second, size_t m
) noexcept nogil:
    """Send two pieces of memory: how many bytes went, 0 where it would have to wait; -1, and it has been closed."""
    cdef int err = 0
    cdef ssize_t put
    # Counted before it goes: who has it back will find it counted.
    rio_count_add(&l.counts.bytes_out, n + m)
    if m == 0:
        put = fd_write(&c.f, first, n, &err)
    else:
        put = fd_write_both(&c.f, first, n, second, m, &err)
    if put < <ssize_t>(n + m):
        rio_count_add(&l.counts.bytes_out, <uint64_t>(max(put, 0) - <ssize_t>(n + m)))
    if put > 0:
        c.bytes_out += put
        progress(l, c)
    elif put < 0 and (err == EINTR or would_block(err)):
        put = 0
    elif put < 0:
        conn_close(l, c, BROKEN, err)
    return put


cdef void conn_write(loop_t *l, conn_t *c) noexcept nogil:
    """Send of what is held as much as the peer takes."""
    cdef ssize_t n = 0
    if c.ready:
        n = conn_send(l, c, buffer_start(&c.b), c.ready, NULL, 0)
        if n < 0:
            return
        buffer_consume(&c.b, n)
        c.ready -= n
    if c.ready == 0:
        keep_no_more_than_needed(&c.b)
    next_step(l, c)


cdef void keep_no_more_than_needed(rio_buffer *b) noexcept nogil:
    """What is left is the beginning of a line: let it not hold the memory of what was sent."""
    cdef size_t held = buffer_held(b)
    cdef rio_buffer small
    if held == 0:
        buffer_free(b)
    elif b.cap > CHUNK and held < b.cap // 4:
        buffer_init(&small, b.base)
        if buffer_reserve(&small, held) < 0:
            return
        buffer_put(&small, buffer_start(b), held)
        buffer_free(b)
        b[0] = small


cdef void note(loop_t *l, size_t length) noexcept nogil:
    """Put down that so many bytes go back as one line (raw: as they came)."""
    cdef size_t cap = max(l.lengths_cap * 2, <size_t>256)
    cdef size_t *grown
    if l.lengths_n == l.lengths_cap:
        grown = <size_t *>PyMem_RawRealloc(l.lengths, cap * sizeof(size_t))
        if grown == NULL:
            return   # a line of a log is what can be spared most easily
        l.lengths = grown
        l.lengths_cap = cap
    l.lengths[l.lengths_n] = length
    l.lengths_n += 1


cdef void note_lines(loop_t *l, size_t held, size_t n) noexcept nogil:
    """Put down the lines in the first n bytes of the area; the first began `held` bytes before."""
    cdef const char *start = l.area
    cdef const char *end = l.area + n
    cdef const char *newline
    while start < end:
        newline = <const char *>memchr(start, c'\n', end - start)
        newline = end if newline == NULL else newline + 1
        note(l, held + <size_t>(newline - start))
        held = 0
        start = newline


cdef void echo_area(loop_t *l, conn_t *c, size_t n) noexcept nogil:
    """Send back what may go of the n bytes in the area, behind the beginning of a line that is held; keep the rest."""
    cdef size_t held = buffer_held(&c.b)
    cdef size_t back = n
    cdef uint64_t lines = 0
    cdef ssize_t put = 0
    cdef size_t from_area
    if l.max_line:
        back = whole_lines(l.area, n, &lines)
        if lines:
            rio_count_add(&l.counts.lines, lines)
        if n - back + (0 if back else held) >= l.max_line:
            back = n   # a line that is too long goes back in pieces
        if l.tell_lines and back:
            note_lines(l, held, back)
    elif l.tell_lines:
        note(l, n)
    if back:
        put = conn_send(l, c, buffer_start(&c.b), held, l.area, back)
        if put < 0:
            return
    c.ready = held + back - put if back else 0
    if <size_t>put < held:
        buffer_consume(&c.b, put)
        from_area = 0
    else:
        buffer_consume(&c.b, held)
        from_area = put - held
    if from_area < n:
        if buffer_reserve(&c.b, buffer_held(&c.b) + n - from_area) < 0:
            conn_close(l, c, BROKEN, ENOMEM)
            return
        buffer_put(&c.b, l.area + from_area, n - from_area)
    elif held:
        buffer_free(&c.b)
    next_step(l, c)


cdef void conn_read(loop_t *l, conn_t *c) noexcept nogil:
    """One read, and the echo of what came."""
    cdef int err = 0
    cdef ssize_t n = fd_read(&c.f, l.area, CHUNK, &err)
    if n > 0:
        if c.phase != LINGERING:   # too late for those, which nothing acknowledges but the kernel
            rio_count_add(&l.counts.bytes_in, n)
            progress(l, c)
            echo_area(l, c, n)
        return
    if n < 0 and err == EINTR:
        return
    if n < 0 and not would_block(err):
        conn_close(l, c, BROKEN, err)
        return
    if n < 0 and c.phase != DRAINING:
        return
    # The end of the input; or of what had arrived when the server was stopped.
    if c.phase == LINGERING:
        conn_close(l, c, STOPPED, 0)
        return
    c.ended = True
    c.ready = buffer_held(&c.b)
    if c.ready and l.tell_lines:
        note(l, c.ready)
    conn_write(l, c)


# ---- all of them


cdef void conn_begin(loop_t *l, conn_t *c) noexcept nogil:
    cdef int err
    append(l, c)
    l.active += 1
    c.phase = DRAINING if l.stopping else ECHOING
    c.deadline = INT64_MAX if l.idle < 0 else l.now + l.idle
    c.events = POLLIN
    err = poller_add(&l.poller, c.f.fd, POLLIN, c)
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
        if c.phase == DRAINING and c.ready == 0:
            conn_read(l, c)
        c = following
    c = l.all.next
    while c != &l.all and not more:
        more = c.phase == DRAINING and c.ready == 0
        c = c.next
    return more


cdef void expire(loop_t *l) noexcept nogil:
    """Close those whose time is over."""
    while l.stopping and l.all.next != &l.all and l.now >= l.drained:
        conn_close(l, l.all.next, CUT_OFF, 0)
    while l.all.next != &l.all and l.now >= l.all.next.deadline and not l.stopping:
        conn_close(l, l.all.next, IDLE, 0)


cdef int64_t next_deadline(const loop_t *l) noexcept nogil:
    if l.all.next == &l.all:
        return INT64_MAX
    return l.drained if l.stopping else l.all.next.deadline


cdef bint loop_turns(loop_t *l, int *err) noexcept nogil:
    """Run until there is something to tell, or an error (True), or all is done (False, and `inbox_ended`)."""
    cdef ready_t ready[READY_MAX]
    cdef conn_t *c
    cdef int i, n
    cdef bint more = False, stop, arrivals
    while l.active or not l.inbox_ended:
        n = poller_wait(&l.poller, ready, 0 if more else milliseconds_until(next_deadline(l)), err)
        if n < 0 and err[0] != EINTR:
            return True
        l.now = rio_monotonic_ns()
        stop = arrivals = False
        for i in range(n):
            if ready[i].data == &l.inbox:
                arrivals = True
            elif ready[i].data == &l.stop_fd:
                stop = True
            else:
                c = <conn_t *>ready[i].data
                if c.ready:
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
    cdef int running
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
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        self.l.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
        self.l.idle = to_nanoseconds(idle_timeout)
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
        if self.begun:
            self.give_back()

    def close(self):
        """Close every connection that is left, and all else. Not while run() runs: RuntimeError."""
        if not rio_flag_take(&self.running):
            raise RuntimeError("this event loop is running")
        self.give_back()
        rio_flag_put(&self.running, RIO_FREE)

    def adopt(self, int fd, peer=None):
        """Take over a connected stream socket, which run() serves and closes; not after no_more().

        peer: anything, for on_closed. Raises MemoryError, and then the descriptor is still the caller's.
        """
        cdef conn_t *c
        cdef int err
        if self.outbox < 0:
            raise ValueError("this event loop takes no more connections")
        c = <conn_t *>PyMem_RawCalloc(1, sizeof(conn_t))
        if c == NULL:
            raise MemoryError
        c.f.fd = fd
        c.f.kind = FD_SOCKET
        c.f.access = O_RDWR
        rio_no_sigpipe(fd)
        buffer_init(&c.b, 0)
        if peer is not None:
            Py_INCREF(peer)
            c.peer = <PyObject *>peer
        with nogil:
            err = hand_over(self.outbox, c)
        if err:
            self.release(c)
            raise os_error(err)

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
            try:
                self.on_line(self.l.lengths[i])
            except BaseException:
                PyErr_WriteUnraisable(self.on_line)
        self.l.lengths_n = 0
        while self.l.gone != NULL:
            c = self.l.gone
            self.l.gone = c.next
            try:
                self.on_closed(
                    None if c.peer == NULL else <object>c.peer, EventLoop.REASONS[<int>c.why], c.err, c.bytes_out
                )
            except BaseException:
                PyErr_WriteUnraisable(self.on_closed)
            self.release(c)

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

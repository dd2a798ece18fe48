# The state of an event loop and of its connections: the list of connections in the order of their deadlines, the buffer
# of each, and the list of those that wait for memory. The steps of a connection are in _server/connection.pxd, the
# turns of the loop in _server/turns.pxd. A loop with handlers calls them through the functions of handler_t.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove

from rioecho._core.budget cimport (
    share_add,
    share_favour_no_more,
    share_give,
    share_reserve_room,
    share_room,
    share_t,
    share_take,
)
from rioecho._core.buffer cimport (
    buffer_clear,
    buffer_fits,
    buffer_growth,
    buffer_held,
    buffer_init,
    buffer_put,
    buffer_start,
    rio_buffer,
)
from rioecho._core.counts cimport counts_t
from rioecho._core.poller cimport poller_t
from rioecho._core.posix cimport RIO_MAPPED, rio_assert, rio_flag, rio_flag_take
from rioecho._server.hosts cimport host_t, hosts_t
from rioecho._server.proxy cimport proxy_t
from rioecho._server.echo cimport (
    CHUNK,
    CHUNK_MIN,
    ECHOING,
    LINGERING,
    MEMORY_LOOK,
    OPENING,
    PAUSED,
    held_free,
    held_resize,
    held_shrink,
)


cdef extern from "Python.h" nogil:
    ctypedef struct PyThreadState:
        pass
    PyThreadState *PyThreadState_Get()
    PyThreadState *PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState *thread)


cdef enum:
    # Maximum number of line lengths reported in one turn. Each is a call of Python while other connections wait.
    REPORTED_MAX = 256
    # While more lines wait for their report, at most this number of bytes is read from a connection in one turn. Even
    # if each byte is a line, a few clients send fewer than are reported. More of them fill the array, and are then read
    # in turn.
    CHUNK_REPORTED = 64
    LENGTHS_MAX = 3 * CHUNK
    BULK_SLOTS = 64      # number of connections whose bulk is spliced; see _server/bulk.pxd
    OUT_KEPT = 131_072   # maximum number of bytes of memory that are kept for what the handlers write
    OPENED_MAX = 256     # maximum number of connections whose first bytes are reported in one turn
    # Buffers of at least this size in bytes are mapped pages of their own, because the heap of malloc() does not return
    # freed memory below a used block to the system. New pages are expensive, so a few spares are kept for the next
    # connections.
    CONN_MAPPED = 16_384
    SPARES = 8                     # maximum number of spares
    SPARES_MAX = 4_194_304         # maximum number of bytes in all spares
    SPARES_KEPT = 1_000_000_000    # nanoseconds before the spares are freed


cdef enum reason:
    # Why a connection is closed; from BROKEN on, that counts as an error.
    OPEN        # it is not closed
    ENDED       # EOF, and everything has been sent
    IDLE        # no progress within the idle timeout
    STOPPED     # drained after the stop
    CUT_OFF     # still open at the drain deadline
    FINISHED    # its handler closed it
    ABORTED     # its handler reset it
    BROKEN      # an error of the connection
    NO_HEADER   # it did not begin with a PROXY header
    CROWDED     # its address has as many connections as are allowed
    TOO_LONG    # a line for its handler is longer than the limit
    FAILED      # its handler raised an exception
    REASONS_N


cdef struct kept_t:
    rio_buffer b         # bytes received and not yet sent
    size_t ready         # bytes at its start that may be sent now; the others are the beginning of a line
    conn_t *owner
    kept_t *prev         # links of the list of those that wait for memory; NULL: not in it
    kept_t *next


cdef struct outlet_t:
    # What a Connection shares with the loop, in whose thread its handler need not be.
    uint64_t unsent      # number of bytes written and not sent
    rio_flag lock        # taken by who closes or duplicates the descriptor, for the time of that call


cdef struct extras_t:
    # What only a server with --proxy-protocol, with --max-per-host or with handler objects needs of a connection.
    proxy_t *header      # PROXY header, until it has been read and logged, or NULL
    host_t *host         # what is counted for its address, or NULL
    outlet_t *outlet     # of its Connection, or NULL


cdef struct conn_t:
    # Kept small: it is all the memory of an idle connection.
    conn_t *prev         # links of the list of connections, in the order of their deadlines
    conn_t *next
    kept_t *kept         # NULL: no buffer
    extras_t *extras     # NULL if none of them is needed
    PyObject *peer       # for on_closed, or NULL; if there are handler objects, the Connection
    int64_t deadline     # of the next check for progress
    uint64_t bytes_out
    int fd
    short events         # the events waited for; PAUSED: waiting for memory
    short err            # errno that it was closed for, or 0
    unsigned char phase
    unsigned char why    # the reason that it is closed for
    unsigned char ended  # whether EOF was read
    unsigned char looks  # number of checks since the last progress
    int unacknowledged   # bytes sent and not acknowledged, at the last check; see peer_took()


cdef struct handler_t:
    # How a loop calls the handlers of its connections, with the GIL. What they write is appended to its ``out``. The
    # functions return OPEN, or the reason for which the connection is to be closed when that is sent.
    void *self
    bint has_objects     # whether each connection has a handler object, and not all of them one function
    int posts            # whether there is anything for next_post()
    reason (*made)(void *self, conn_t *c) noexcept nogil
    # n bytes that follow ``before`` bytes, all of them whole lines (at EOF and with raw framing: any bytes). The
    # ``rest`` bytes that follow are the beginning of a line.
    reason (*received)(
        void *self, conn_t *c, const char *first, size_t before, const char *data, size_t n, size_t rest
    ) noexcept nogil
    # Returns a connection that something was asked of outside of these calls, or NULL.
    conn_t *(*next_post)(void *self, reason *why) noexcept nogil
    # Nothing more will be received or sent. Returns False if it is to be called again, for lack of memory.
    bint (*lost)(void *self, conn_t *c) noexcept nogil


cdef struct loop_t:
    poller_t poller
    conn_t all           # head of the list of connections
    conn_t lingering     # head of the list of those that linger, though the server is not stopping
    conn_t *favoured     # the connection that may use the reserve of the budget, or NULL
    kept_t waiting       # head of the list of those that wait for memory, the longest wait first
    conn_t *gone         # closed connections to be reported
    conn_t *again        # closed connections whose report failed for lack of memory
    char *area           # CHUNK bytes, read into by all connections
    char *spare[SPARES]  # spare pages, which still count as used memory of the budget
    size_t spare_cap[SPARES]
    size_t spare_bytes   # number of bytes in all spares
    unsigned int spares  # number of spares
    size_t chunk         # size of a read of a connection without a buffer; smaller while memory is short
    size_t bulk          # capacity of the pipe in bytes, or 0: no bytes are spliced
    int pipe[2]          # for splice(2); empty between two steps
    conn_t *bulked[BULK_SLOTS]   # the open connections that are spliced from, by descriptor
    size_t active        # number of open connections
    int stop_fd          # readable when the stop is requested
    int inbox            # a pipe of conn_t pointers; NULL is the end, because a forked process may prevent EOF
    bint inbox_ended     # whether that NULL was read
    bint stopping        # whether the loop is draining
    int64_t now          # time at the beginning of this turn
    int64_t look         # time of the next check for memory and of the next repeated report, or INT64_MAX
    int64_t idle         # idle timeout in nanoseconds, or -1
    int64_t pause        # interval between two checks for progress: a LOOKS-th of the idle timeout
    int64_t drain        # nanoseconds for draining and lingering
    int64_t drained      # the drain deadline
    int64_t patience     # until then draining waits for the first bytes of a connection
    size_t max_line      # a longer line is sent in pieces; 0: raw
    counts_t *counts
    bint proxied         # whether each connection begins with a PROXY header
    hosts_t *hosts       # counts the connections of each address of a PROXY header, and those with a `host`; or NULL
    share_t memory       # the budget of the connections' buffers
    int report_closings  # whether to report connections without a peer too
    conn_t *opened[OPENED_MAX]   # connections whose first bytes are to be reported
    unsigned int opened_n
    size_t *lengths      # array of LENGTHS_MAX lengths of lines to be reported, or NULL: lines are not reported
    size_t lengths_n     # number of lengths in the array
    handler_t *handler   # NULL: echo
    rio_buffer out       # what a handler has written, until it is sent or kept for its connection
    int64_t linger       # nanoseconds for lingering
    int wake             # readable after a post of another thread, or -1
    PyThreadState *thread   # of run(), if there are handlers
    bint attached        # whether the loop holds the GIL


# ---- the GIL, which only a loop with handlers takes: once for all connections that are ready together


cdef inline void loop_attach(loop_t *l) noexcept nogil:
    """Take the GIL, unless the loop holds it."""
    if not l.attached:
        PyEval_RestoreThread(l.thread)
        l.attached = True


cdef inline void loop_detach(loop_t *l) noexcept nogil:
    """Release the GIL if the loop holds it, before it waits."""
    if l.attached:
        l.attached = False
        PyEval_SaveThread()


cdef inline void outlet_lock(outlet_t *o) noexcept nogil:
    """Take the lock, which nobody holds for longer than a system call."""
    while not rio_flag_take(&o.lock):
        pass


# ---- the list of connections


cdef inline void conn_check(const loop_t *l, const conn_t *c) noexcept nogil:
    """Assert the invariants of a connection in the list, between any two of its steps."""
    rio_assert(c.prev.next == c and c.next.prev == c)
    rio_assert(c.phase <= OPENING)
    rio_assert(c.phase != OPENING or l.handler != NULL or (c.kept == NULL and c.bytes_out == 0))
    rio_assert(c.why < REASONS_N and c.fd >= 0)
    rio_assert(c.kept == NULL or (c.kept.owner == c and c.kept.ready <= c.kept.b.w - c.kept.b.r))
    rio_assert(c.kept == NULL or c.kept.next == NULL or (c.events == PAUSED and c.kept.prev.next == c.kept))


cdef inline void conn_append(loop_t *l, conn_t *c) noexcept nogil:
    c.prev = l.all.prev
    c.next = &l.all
    c.prev.next = c
    l.all.prev = c


cdef inline void conn_unlink(conn_t *c) noexcept nogil:
    rio_assert(c.prev.next == c and c.next.prev == c)
    c.prev.next = c.next
    c.next.prev = c.prev


cdef inline void conn_look_later(loop_t *l, conn_t *c) noexcept nogil:
    """Set the next deadline and move the connection to the end of the list, which is sorted because ``pause`` is fixed.
    """
    c.deadline = l.now + l.pause
    if c.next != &l.all:
        conn_unlink(c)
        conn_append(l, c)


cdef inline void conn_linger_until(loop_t *l, conn_t *c) noexcept nogil:
    """Move a connection to the end of the list of those that linger, which is sorted because ``linger`` is fixed."""
    conn_unlink(c)
    c.deadline = l.now + l.linger
    c.prev = l.lingering.prev
    c.next = &l.lingering
    c.prev.next = c
    l.lingering.prev = c


cdef inline void conn_progress(loop_t *l, conn_t *c) noexcept nogil:
    """Restart the idle timeout of a connection."""
    if l.idle < 0:
        return
    # Only a connection with a handler sends before it has received anything, or goes on sending after its end.
    if c.phase != ECHOING and (l.handler == NULL or l.stopping or c.phase == LINGERING):
        return
    c.looks = 0
    conn_look_later(l, c)


# ---- the buffer of a connection


cdef inline size_t conn_ready(const conn_t *c) noexcept nogil:
    """Return the number of bytes in the buffer that may be sent now."""
    return 0 if c.kept == NULL else c.kept.ready


cdef inline bint conn_is_silent(const conn_t *c) noexcept nogil:
    """Report whether nothing has come from the peer: what has come was sent back or is in the buffer."""
    return c.bytes_out == 0 and c.kept == NULL


cdef inline size_t conn_held(const conn_t *c) noexcept nogil:
    """Return the number of bytes in the buffer."""
    return 0 if c.kept == NULL else buffer_held(&c.kept.b)


cdef inline bint loop_spare_put(loop_t *l, rio_buffer *b) noexcept nogil:
    """Keep the pages of a buffer as a spare; report whether they are pages and there was room for a spare."""
    if (
        b.cap < b.mapped
        or l.spares == SPARES
        or l.spare_bytes + b.cap > SPARES_MAX
        or share_room(&l.memory) < SPARES_MAX
    ):
        return False
    l.spare[l.spares] = b.data
    l.spare_cap[l.spares] = b.cap
    l.spare_bytes += b.cap
    l.spares += 1
    buffer_clear(b)
    l.look = min(l.look, l.now + SPARES_KEPT)
    return True


cdef inline void loop_spare_take(loop_t *l, rio_buffer *b) noexcept nogil:
    """Move a buffer that is not mapped into the spare used last."""
    cdef size_t held = buffer_held(b)
    rio_assert(0 < l.spares and l.spares <= SPARES and held <= l.spare_cap[l.spares - 1])
    l.spares -= 1
    if held:
        memcpy(l.spare[l.spares], buffer_start(b), held)
    held_free(&l.memory, b)
    b.w = held
    b.data = l.spare[l.spares]
    b.cap = l.spare_cap[l.spares]
    l.spare_bytes -= b.cap


cdef inline void loop_spares_free(loop_t *l) noexcept nogil:
    """Return all spare pages to the system."""
    cdef rio_buffer b
    while l.spares:
        buffer_init(&b, 0)
        b.mapped = RIO_MAPPED(CONN_MAPPED)
        loop_spare_take(l, &b)
        held_free(&l.memory, &b)


cdef inline void loop_gauge(loop_t *l) noexcept nogil:
    """Choose the size of a read by the free memory. Called when that changes, here or as a check shows elsewhere."""
    if share_room(&l.memory) < CHUNK:
        loop_spares_free(l)
    if share_room(&l.memory) >= CHUNK:
        l.chunk = CHUNK
    else:
        l.chunk = CHUNK_MIN
        l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)


cdef inline void loop_favour_no_more(loop_t *l) noexcept nogil:
    l.favoured = NULL
    share_favour_no_more(&l.memory)


cdef inline void conn_wait_for_memory(loop_t *l, conn_t *c) noexcept nogil:
    """Add a connection with a buffer to the list of those that wait for memory."""
    cdef kept_t *k = c.kept
    rio_assert(k.next == NULL)
    k.prev = l.waiting.prev
    k.next = &l.waiting
    k.prev.next = k
    l.waiting.prev = k
    l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)


cdef inline void conn_wait_no_more(conn_t *c) noexcept nogil:
    """Remove a connection from the list of those that wait for memory, if it is in it."""
    cdef kept_t *k = c.kept
    if k != NULL and k.next != NULL:
        k.prev.next = k.next
        k.next.prev = k.prev
        k.prev = k.next = NULL


cdef inline void conn_keep_nothing(loop_t *l, conn_t *c) noexcept nogil:
    if c.kept == NULL:
        return
    conn_wait_no_more(c)
    if not loop_spare_put(l, &c.kept.b):
        held_free(&l.memory, &c.kept.b)
    share_give(&l.memory, sizeof(kept_t))
    PyMem_RawFree(c.kept)
    c.kept = NULL
    if l.chunk != CHUNK:
        loop_gauge(l)
    if c == l.favoured:
        loop_favour_no_more(l)
        l.look = l.now   # so that another connection may use the reserve


cdef inline int conn_reserve(loop_t *l, conn_t *c, size_t n) noexcept nogil:
    """Reserve room for n more bytes in the buffer. Returns 0, or -1 if the allocation fails.

    conn_room() has permitted them; they are kept even if another thread has used up the budget since.
    """
    cdef size_t need, cap
    if c.kept == NULL:
        c.kept = <kept_t *>PyMem_RawMalloc(sizeof(kept_t))
        if c.kept == NULL:
            return -1
        share_add(&l.memory, sizeof(kept_t))
        c.kept.ready = 0
        c.kept.owner = c
        c.kept.prev = c.kept.next = NULL
        buffer_init(&c.kept.b, 0)
        c.kept.b.mapped = RIO_MAPPED(CONN_MAPPED)
    need = buffer_held(&c.kept.b) + n
    if (
        l.spares
        and not buffer_fits(&c.kept.b, need)
        and c.kept.b.cap < c.kept.b.mapped
        and buffer_growth(&c.kept.b, need) >= c.kept.b.mapped
    ):
        loop_spare_take(l, &c.kept.b)
    if not buffer_fits(&c.kept.b, need):
        cap = buffer_growth(&c.kept.b, need)
        if not share_take(&l.memory, cap - c.kept.b.cap):
            cap = max(need, c.kept.b.cap)
            share_add(&l.memory, cap - c.kept.b.cap)
        if held_resize(&l.memory, &c.kept.b, cap) < 0:
            return -1
        loop_gauge(l)
    return 0


cdef inline int conn_keep(loop_t *l, conn_t *c, const char *data, size_t n) noexcept nogil:
    """Append n bytes to the buffer. Returns 0, or -1 if the allocation fails."""
    if conn_reserve(l, c, n) < 0:
        return -1
    buffer_put(&c.kept.b, data, n)
    return 0


cdef inline size_t conn_rest(const conn_t *c) noexcept nogil:
    """Return the number of bytes of the beginning of a line in the buffer, which follow those that are ready."""
    return conn_held(c) - conn_ready(c)


cdef inline void conn_drop_rest(conn_t *c) noexcept nogil:
    """Remove the beginning of a line from the buffer."""
    if c.kept != NULL:
        c.kept.b.w = c.kept.b.r + c.kept.ready


cdef inline int conn_keep_ready(loop_t *l, conn_t *c, const char *data, size_t n) noexcept nogil:
    """Add n bytes to those that are ready, in front of the beginning of a line. Returns 0, or -1 if there is no memory.
    """
    cdef size_t rest = conn_rest(c)
    cdef char *place
    if conn_keep(l, c, data, n) < 0:
        return -1
    if rest:
        place = buffer_start(&c.kept.b) + c.kept.ready
        memmove(place + n, place, rest)
        memcpy(place, data, n)
    c.kept.ready += n
    return 0


cdef inline size_t conn_room(const loop_t *l, const conn_t *c) noexcept nogil:
    """Return the size of the next read of a connection that holds the beginning of a line; 0: wait for memory."""
    cdef size_t spare = c.kept.b.cap - c.kept.b.w
    cdef size_t room = share_room(&l.memory)
    rio_assert(c.kept.ready == 0)
    if c == l.favoured:
        room = share_reserve_room(&l.memory, c.kept.b.cap)
    if spare >= CHUNK or room >= CHUNK - spare:
        return CHUNK
    return spare + room if spare + room >= CHUNK_MIN else 0


cdef inline void conn_shrink(loop_t *l, conn_t *c) noexcept nogil:
    """Release the memory of bytes that were sent, all of it if the buffer is empty."""
    if conn_held(c) == 0:
        conn_keep_nothing(l, c)
    else:
        held_shrink(&l.memory, &c.kept.b)
        if c == l.favoured:   # the line that needed the reserve has been sent
            loop_favour_no_more(l)

# The state of an event loop and of its connections, and the list of connections in the order of their deadlines. The
# memory of a connection is in _server/kept.pxd, its steps in _server/connection.pxd and receiving.pxd, and the turns in
# _server/turns.pxd. A loop with handlers calls them through the functions of handler_t.

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from rioecho._core.budget cimport share_t
from rioecho._core.buffer cimport rio_buffer
from rioecho._core.counts cimport counts_t
from rioecho._core.forks cimport generation
from rioecho._core.poller cimport poller_t
from rioecho._core.posix cimport rio_assert, rio_atomic_add, rio_atomic_claim, rio_atomic_load
from rioecho._server.hosts cimport host_t, hosts_t
from rioecho._server.proxy cimport proxy_t
from rioecho._server.echo cimport CHUNK, ECHOING, HALTED, LINGERING, OPENING, PAUSED


cdef extern from "<sched.h>" nogil:
    int sched_yield()


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
    uint64_t lock        # of the descriptor: 0, or the generation of the holding process plus 1; see outlet_lock()


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
    short events         # the events waited for; PAUSED, HALTED: waiting for memory
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
    # The steps that call these functions, with or without the GIL; see _server/handled.pxd.
    void (*make)(loop_t *l, conn_t *c) noexcept nogil
    void (*handle)(loop_t *l, conn_t *c, size_t n) noexcept nogil
    void (*handle_last)(loop_t *l, conn_t *c) noexcept nogil
    void (*take_posts)(loop_t *l) noexcept nogil


cdef struct loop_t:
    poller_t poller
    conn_t all           # head of the list of connections
    conn_t lingering     # head of the list of those that linger, though the server is not stopping
    conn_t *favoured     # the connection that may use the reserve of the budget, or NULL
    bint fulfilled       # whether its line is whole: once that is sent, another one may use the reserve
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
    int64_t look         # time of the next periodic work, see loop_look(), or INT64_MAX
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


cdef inline bint outlet_lock(outlet_t *o) noexcept nogil:
    """Take the lock, which nobody holds for longer than a call of fcntl(2). The loop takes it without the GIL.

    Returns False in a forked child if a thread of the parent held it at the fork: nobody will release it, and what it
    guards may be inconsistent.
    """
    cdef uint64_t holder, ours = <uint64_t>generation + 1
    while not rio_atomic_claim(&o.lock, ours):
        holder = rio_atomic_load(&o.lock)
        if holder != 0 and holder != ours:
            return False
        sched_yield()
    return True


cdef inline void outlet_unlock(outlet_t *o) noexcept nogil:
    """Release the lock, if this process holds it."""
    cdef uint64_t ours = <uint64_t>generation + 1
    if rio_atomic_load(&o.lock) == ours:
        rio_atomic_add(&o.lock, <uint64_t>0 - ours)


# ---- the list of connections


cdef inline bint waits_for_memory(short events) noexcept nogil:
    """Report whether these are the events of a connection that waits for memory."""
    return events == PAUSED or events == HALTED


cdef inline void conn_check(const loop_t *l, const conn_t *c) noexcept nogil:
    """Assert the invariants of a connection in the list, between any two of its steps."""
    rio_assert(c.prev.next == c and c.next.prev == c)
    rio_assert(c.phase <= OPENING)
    rio_assert(c.phase != OPENING or l.handler != NULL or (c.kept == NULL and c.bytes_out == 0))
    # An invalid descriptor that was adopted is closed before the first step.
    rio_assert(c.why < REASONS_N and (c.fd >= 0 or c.phase == OPENING))
    rio_assert(c.kept == NULL or (c.kept.owner == c and c.kept.ready <= c.kept.b.w - c.kept.b.r))
    rio_assert(c.kept == NULL or c.kept.next == NULL or (waits_for_memory(c.events) and c.kept.prev.next == c.kept))


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
    l.look = min(l.look, c.deadline)


cdef inline void conn_progress(loop_t *l, conn_t *c) noexcept nogil:
    """Restart the idle timeout of a connection."""
    if l.idle < 0:
        return
    # Only a connection with a handler sends before it has received anything, or goes on sending after its end.
    if c.phase != ECHOING and (l.handler == NULL or l.stopping or c.phase == LINGERING):
        return
    c.looks = 0
    conn_look_later(l, c)

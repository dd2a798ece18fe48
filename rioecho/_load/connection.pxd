# One connection of a load loop: its state and its steps. The turns of the loop are in _load/turns.pxd.
#
# Sent data is not stored. All messages form one cycle in memory, shared by every connection and thread, and the first
# bytes of the cycle are repeated after its end. The next bytes that a connection sends, and the next that it expects,
# are therefore a place in the cycle: a send needs no assembly, and one memcmp checks everything that a recv returned.

from libc.errno cimport EINTR, ENOBUFS, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from rioecho._core.fdio cimport fd_open, fd_read, fd_write, rio_fd, would_block
from rioecho._load.histogram cimport hist_record, hist_t
from rioecho._core.poller cimport poller_add, poller_modify, poller_remove, poller_t
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    rio_add_relaxed,
    rio_assert,
    rio_bool_get,
    rio_bool_set,
    rio_monotonic_ns,
    rio_store_relaxed,
    write,
)


cdef enum:
    CHUNK = 1 << 16       # maximum number of bytes of one send or recv
    LATER = 1 << 12       # the clock is read again after checking more bytes than this


cdef enum phase:
    SENDING
    DRAINING              # only messages already begun are sent; waiting for everything in flight
    OVER


cdef enum outcome:
    DONE
    WRONG                 # a byte differs from what was sent; number: its offset in the connection's stream
    LOST                  # the connection was closed or reset; number: bytes sent and not echoed
    STALLED               # no byte was received within the timeout; number: messages not echoed
    FAILED                # the poller failed: err


cdef enum link:           # the socket of a connection; the loop sets DOWN and UP, the owner of the sockets the others
    UP
    DOWN                  # lost; the loop does not use the descriptor any more
    AWAITED               # the owner is connecting another socket
    ARRIVED               # its descriptor is next_fd


cdef struct sent_t:
    int64_t when
    uint64_t n            # messages whose first byte was sent then


cdef struct load_conn:
    rio_fd f
    bint blocked          # the socket buffer is full: waiting for POLLOUT
    bint broken           # nothing can be sent: sending failed, and the next read reports why, or there is no socket
    int link              # read and written by the owner of the sockets too
    int next_fd
    size_t out            # place in the cycle of the next byte to send
    size_t inp            # place in the cycle of the next byte to receive
    size_t out_part       # bytes sent of an incomplete message
    size_t inp_part       # bytes received of an incomplete message
    uint64_t unsent       # bytes that may be sent now
    uint64_t bytes_out
    uint64_t bytes_in
    uint64_t back         # messages echoed
    uint64_t in_flight    # messages sent, or released for sending, and not yet echoed
    uint64_t owed         # messages that are due and wait for room in the pipeline
    sent_t *sent          # a ring: when the messages in flight were sent. The messages of one send share an entry
    size_t first
    size_t entries


cdef struct load_t:
    poller_t poller
    load_conn *conns
    size_t n
    const char *cycle
    size_t length         # of the cycle
    size_t size           # of a message
    uint64_t pipeline     # maximum number of messages in flight on a connection
    double interval       # nanoseconds from one message of the loop to the next; 0: closed loop
    uint64_t issued       # messages that have become due
    int64_t start         # of the schedule, on the monotonic clock, as all times here
    int64_t begin         # of the measurement
    int64_t end           # of the measurement
    int64_t last          # when a byte was last received, or nothing was in flight
    int64_t stall         # timeout in nanoseconds
    phase phase
    outcome outcome
    size_t culprit        # index of the connection of WRONG and LOST
    uint64_t number
    int err
    char *area            # CHUNK bytes, to receive into
    hist_t *since_sent
    hist_t *since_due     # the same histogram if there is no schedule
    hist_t *lateness      # how long after they were due messages were released; NULL if there is no schedule
    int64_t used          # processor time in nanoseconds
    int64_t lasted        # nanoseconds
    bint reconnect        # a lost connection does not end the load
    size_t down           # number of connections without a socket
    int wake_fd           # gets a byte at the end and after a loss, if the loop has a thread of its own; else -1
    # Read by other threads at any time:
    int told              # a byte was written to wake_fd after a loss, and lost() has not been called since
    uint64_t lost         # messages sent on lost connections and never echoed
    int ended
    uint64_t measured     # messages echoed between begin and end
    uint64_t echoed       # all messages echoed
    uint64_t in_flight
    int stopping          # number of calls of stop(), at most 2
    int attention         # `stopping` or a `link` has changed


cdef inline void load_fail(load_t *l, outcome why, load_conn *c, uint64_t number, int err) noexcept nogil:
    l.phase = OVER
    l.outcome = why
    l.culprit = <size_t>(c - l.conns) if c != NULL else 0
    l.number = number
    l.err = err


cdef inline size_t load_onward(const load_t *l, size_t place, size_t n) noexcept nogil:
    """Return the place in the cycle that is n bytes after a place (n <= CHUNK)."""
    rio_assert(place < l.length and n <= CHUNK)
    place += n
    if place >= l.length:
        place -= l.length
    return place if place < l.length else place % l.length


cdef inline int64_t load_due(const load_t *l, const load_conn *c, uint64_t k) noexcept nogil:
    """Return the scheduled time of the k-th message of a connection: the connections alternate."""
    return l.start + <int64_t>(<double>(k * l.n + <uint64_t>(c - l.conns)) * l.interval)


# ---- losing a connection, and continuing on another one


cdef inline void conn_take_back(load_t *l, load_conn *c) noexcept nogil:
    """Take back the messages of which no byte was sent. The rest of one that was begun can still be sent."""
    cdef uint64_t rest = l.size - c.out_part if c.out_part else 0
    cdef uint64_t whole
    if c.unsent > rest:
        whole = (c.unsent - rest) // l.size
        rio_assert(whole <= c.in_flight and whole <= l.in_flight)
        c.unsent = rest
        c.in_flight -= whole
        c.owed += whole
        rio_store_relaxed(&l.in_flight, l.in_flight - whole)


cdef inline void load_tell(load_t *l) noexcept nogil:
    """Wake the owner of the sockets. At most one byte is in the pipe, so that the write cannot block."""
    if l.wake_fd >= 0 and not rio_bool_get(&l.told):
        rio_bool_set(&l.told, True)
        while write(l.wake_fd, b"l", 1) < 0 and errno == EINTR:
            pass


cdef inline void conn_lost(load_t *l, load_conn *c, int err) noexcept nogil:
    """Fail the load or, with "reconnect", count the messages in flight as lost and let go of the socket."""
    if not l.reconnect:
        load_fail(l, LOST, c, c.bytes_out - c.bytes_in, err)
        return
    conn_take_back(l, c)
    poller_remove(&l.poller, c.f.fd)
    rio_add_relaxed(&l.lost, c.in_flight)
    rio_store_relaxed(&l.in_flight, l.in_flight - c.in_flight)
    c.back += c.in_flight   # the schedule does not return to them
    c.in_flight = c.unsent = c.bytes_out = c.bytes_in = 0
    c.first = c.entries = 0
    # The next message is the first one on the next socket.
    c.out += l.size - c.out_part if c.out_part else 0
    c.inp = c.out = c.out % l.length
    c.out_part = c.inp_part = 0
    c.blocked = False
    c.broken = True
    l.down += 1
    rio_bool_set(&c.link, DOWN)
    load_tell(l)


cdef inline void conn_take_over(load_t *l, load_conn *c) noexcept nogil:
    """Continue on the socket that replaces a lost one."""
    cdef int64_t last = l.last
    cdef bint alone = l.down == l.n
    cdef int err = fd_open(&c.f, c.next_fd)
    if not err:
        err = poller_add(&l.poller, c.f.fd, POLLIN, c)
    if err:
        load_fail(l, FAILED, c, 0, err)
        return
    c.broken = False
    l.down -= 1
    rio_bool_set(&c.link, UP)
    conn_fill_window(l, c, rio_monotonic_ns())
    if alone:
        l.last = last   # a connection that is lost again before its first echo does not delay the stall timeout


# ---- sending


cdef inline void conn_watch(load_t *l, load_conn *c, bint blocked) noexcept nogil:
    cdef int err
    if blocked != c.blocked:
        c.blocked = blocked
        err = poller_modify(&l.poller, c.f.fd, POLLIN | POLLOUT if blocked else POLLIN, c)
        if err:
            load_fail(l, FAILED, c, 0, err)


cdef inline void conn_note_sent(load_t *l, load_conn *c, size_t n, int64_t now) noexcept nogil:
    """Store the time for the messages whose first byte is among n bytes just sent."""
    cdef size_t reached = c.out_part + n
    cdef size_t begun = reached // l.size
    cdef size_t rest = reached - begun * l.size
    cdef size_t place
    begun += <size_t>(rest > 0) - <size_t>(c.out_part > 0)
    c.out_part = rest
    if begun == 0:
        return
    place = c.first + c.entries
    if place >= l.pipeline:
        place -= l.pipeline
    # There are at most as many entries as messages in flight, so the ring has room.
    rio_assert(c.first < l.pipeline and c.entries < l.pipeline and c.in_flight <= l.pipeline)
    c.sent[place].when = now
    c.sent[place].n = begun
    c.entries += 1


cdef inline void conn_send_pending(load_t *l, load_conn *c, int64_t now) noexcept nogil:
    """Send the bytes that may be sent, until the socket buffer is full."""
    cdef bint blocked = False
    cdef size_t want
    cdef ssize_t n
    cdef int err = 0
    while c.unsent and not blocked:
        want = <size_t>min(c.unsent, <uint64_t>CHUNK)
        n = fd_write(&c.f, l.cycle + c.out, want, &err)
        if n < 0:
            if err == EINTR:
                continue
            if not would_block(err) and err != ENOBUFS:
                c.broken = True   # the echoes received before can still be read, and then the error
                break
            n = 0
        conn_note_sent(l, c, <size_t>n, now)
        c.out = load_onward(l, c.out, <size_t>n)
        c.bytes_out += <uint64_t>n
        c.unsent -= <uint64_t>n
        blocked = <size_t>n < want
        if c.unsent and not blocked:
            now = rio_monotonic_ns()
    conn_watch(l, c, blocked)


cdef inline void conn_fill_window(load_t *l, load_conn *c, int64_t now) noexcept nogil:
    """Send as many messages as the pipeline has room for and, with a schedule, at most those that are due."""
    cdef uint64_t room = l.pipeline - c.in_flight
    rio_assert(c.in_flight <= l.pipeline)
    if l.phase != SENDING or now >= l.end or c.broken:
        return
    if l.interval > 0:
        room = min(room, c.owed)
        c.owed -= room
    if room:
        if l.in_flight == 0:
            l.last = now
        c.in_flight += room
        rio_add_relaxed(&l.in_flight, room)
        c.unsent += room * l.size
        if not c.blocked:
            conn_send_pending(l, c, now)


# ---- receiving


cdef inline void conn_count_back(load_t *l, load_conn *c, uint64_t n, int64_t now) noexcept nogil:
    """Count n echoed messages and record their latencies."""
    cdef sent_t *oldest
    cdef uint64_t left = n, some, k
    rio_assert(n <= c.in_flight and n <= l.in_flight)
    while left:
        rio_assert(c.first < l.pipeline and 0 < c.entries <= l.pipeline and c.sent[c.first].n > 0)
        oldest = &c.sent[c.first]
        some = min(left, oldest.n)
        if now >= l.begin:
            hist_record(l.since_sent, now - oldest.when, some)
        oldest.n -= some
        left -= some
        if oldest.n == 0:
            c.entries -= 1
            c.first += 1
            if c.first == l.pipeline:
                c.first = 0
    if l.interval > 0 and now >= l.begin:
        for k in range(c.back, c.back + n):
            hist_record(l.since_due, now - load_due(l, c, k), 1)
    c.back += n
    c.in_flight -= n
    rio_store_relaxed(&l.in_flight, l.in_flight - n)
    rio_add_relaxed(&l.echoed, n)
    if l.begin <= now < l.end:
        rio_add_relaxed(&l.measured, n)


cdef inline void conn_wrong(load_t *l, load_conn *c, size_t n) noexcept nogil:
    """Find the first of n bytes that differs from what was sent, or was never sent, and fail the load."""
    cdef size_t i = 0
    while i < n and c.bytes_in + i < c.bytes_out and l.area[i] == l.cycle[c.inp + i]:
        i += 1
    load_fail(l, WRONG, c, c.bytes_in + i, 0)


cdef inline void conn_receive(load_t *l, load_conn *c) noexcept nogil:
    """Receive once, check and count the bytes, and send the next messages."""
    cdef int err = 0
    cdef ssize_t got = fd_read(&c.f, l.area, CHUNK, &err)
    cdef size_t n = <size_t>got
    cdef size_t reached, messages
    cdef int64_t now
    if got <= 0:
        if got == 0 or (err != EINTR and not would_block(err)):
            conn_lost(l, c, err if got < 0 else 0)
        return
    now = rio_monotonic_ns()
    if c.bytes_out - c.bytes_in < n or memcmp(l.area, l.cycle + c.inp, n) != 0:
        conn_wrong(l, c, n)
        return
    l.last = now
    c.bytes_in += n
    c.inp = load_onward(l, c.inp, n)
    reached = c.inp_part + n
    messages = reached // l.size
    c.inp_part = reached - messages * l.size
    if messages:
        conn_count_back(l, c, messages, now)
        conn_fill_window(l, c, rio_monotonic_ns() if n > LATER else now)

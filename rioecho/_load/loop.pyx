"""Load on an echo server by one thread: many connections, every byte checked, every message timed, without the GIL.

In a closed loop each connection has `pipeline` messages under way, and sends another for each that comes back. With a
rate the messages have a schedule, whatever the server does: what a slow answer keeps from being sent in time was due
all the same, and its latency counts from then ("coordinated omission", G. Tene).
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from rioecho._core.convert cimport os_error, to_nanoseconds
from rioecho._core.fdio cimport FD_SOCKET, fd_open
from rioecho._load.histogram cimport Histogram, hist_index, hist_lowest, hist_new, hist_record, hist_record_row
from rioecho._load.connection cimport (
    CHUNK,
    DONE,
    DRAINING,
    FAILED,
    OVER,
    SENDING,
    STALLED,
    conn_fill_window,
    conn_receive,
    conn_send_pending,
    load_conn,
    load_due,
    load_fail,
    load_t,
    sent_t,
)
from rioecho._core.poller cimport READY_MAX, poller_add, poller_close, poller_create, poller_wait, ready_t
from rioecho._core.posix cimport (
    F_DUPFD_CLOEXEC,
    POLLIN,
    POLLOUT,
    close,
    fcntl,
    getpid,
    pthread_create,
    pthread_join,
    pthread_t,
    rio_assert,
    rio_bool_get,
    rio_bool_set,
    rio_flag,
    rio_flag_take,
    rio_load_relaxed,
    rio_monotonic_ns,
    rio_signals_hold,
    rio_signals_release,
    rio_store_relaxed,
    rio_thread_ns,
    rio_wait_ns,
    rio_wake_exactly,
    sigset_t,
    write,
)

cdef enum:
    LOOK_UP = 20_000_000          # nanoseconds between two looks at `stopping`, at most
    FAREWELL = 1_000_000_000      # a loop that was stopped waits no longer for anything to come back
    MESSAGES = 251                # in the cycle, if they are not so large; a prime: no buffer has a multiple of it
    CYCLE_MAX = 1 << 22           # bytes, then


cdef bytes LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
cdef double MIN_RATE = 2.0 ** -31   # of a loop: the clock holds the time of its next message, in 68 years


# ---- the loop


cdef void load_schedule_due(load_t *l, int64_t now) noexcept nogil:
    """Let go what has become due."""
    cdef double passed = <double>(now - l.start) / l.interval
    cdef uint64_t reached, i, n
    cdef load_conn *c
    if passed < 0:
        return
    reached = <uint64_t>passed + 1
    if reached <= l.issued:
        return
    # Several rounds at once where it is late.
    n = reached - l.issued
    for i in range(min(n, <uint64_t>l.n)):
        c = &l.conns[(l.issued + i) % l.n]
        c.owed += (n - i - 1) // l.n + 1
        conn_fill_window(l, c, rio_monotonic_ns())
    l.issued = reached


cdef int load_wait(load_t *l, ready_t *ready, int64_t now, int *err) noexcept nogil:
    """poller_wait, until it is time for something else."""
    cdef int64_t until = now + LOOK_UP
    cdef int64_t left
    cdef int n
    if l.phase == SENDING:
        until = min(until, l.end)
        if l.interval > 0:
            until = min(until, l.start + <int64_t>(<double>l.issued * l.interval))
            n = poller_wait(&l.poller, ready, 0, err)
            left = until - rio_monotonic_ns()
            if n != 0 or left <= 0:
                return n
            if l.poller.epoll < 0:
                return poller_wait(&l.poller, ready, <int>(left // 1_000_000), err)
            # A millisecond, epoll_wait's unit, is long beside a message's latency.
            rio_wait_ns(l.poller.epoll, left)
            return poller_wait(&l.poller, ready, 0, err)
    left = max(until - now, <int64_t>0)
    return poller_wait(&l.poller, ready, <int>((left + 999_999) // 1_000_000), err)


cdef void load_turn(load_t *l, int64_t now) noexcept nogil:
    """Wait, and serve each connection that is ready once; then judge whether anything came in time."""
    cdef ready_t ready[READY_MAX]
    cdef load_conn *c
    cdef int i, n, err = 0
    n = load_wait(l, ready, now, &err)
    if n < 0 and err != EINTR:
        load_fail(l, FAILED, NULL, 0, err)
    for i in range(n):
        c = <load_conn *>ready[i].data
        # What has come back first: it makes room for what is to be sent.
        if ready[i].events & ~POLLOUT:
            conn_receive(l, c)
        if ready[i].events & POLLOUT and c.blocked:
            conn_send_pending(l, c, rio_monotonic_ns())
        if l.phase == OVER:
            return
    # By the time before the wait, and not after one that was interrupted: this process may have been stopped for a
    # while, by Ctrl-Z for one, and what came meanwhile has to be found first.
    if n >= 0 and l.in_flight and now - l.last >= l.stall and not rio_bool_get(&l.stopping):
        load_fail(l, STALLED, NULL, l.in_flight, 0)


cdef void load_drain(load_t *l) noexcept nogil:
    """Only what has been begun goes to its end, so that the server has had whole messages."""
    cdef load_conn *c
    cdef uint64_t rest, whole
    cdef size_t i
    l.phase = DRAINING
    for i in range(l.n):
        c = &l.conns[i]
        rest = l.size - c.out_part if c.out_part else 0
        if c.unsent > rest:
            whole = (c.unsent - rest) // l.size
            rio_assert(whole <= c.in_flight and whole <= l.in_flight)
            c.unsent = rest
            c.in_flight -= whole
            c.owed += whole
            rio_store_relaxed(&l.in_flight, l.in_flight - whole)


cdef void conn_count_owed(load_t *l, const load_conn *c) noexcept nogil:
    """Count what was due and never went. It may be billions: those that share a place in the histogram at once."""
    cdef double step = <double>l.n * l.interval   # from one message of the connection to the next
    cdef uint64_t k = c.back + c.in_flight
    cdef uint64_t left = c.owed, some
    cdef int64_t age, least
    while left:
        age = max(l.end - load_due(l, c, k), <int64_t>0)
        least = <int64_t>hist_lowest(hist_index(<uint64_t>age))
        some = min(left, <uint64_t>(<double>(age - least) / step) + 1)
        # The last of them is not below `least`, but for what is lost in rounding.
        hist_record_row(l.since_due, <uint64_t>age, <uint64_t>max(l.end - load_due(l, c, k + some - 1), least), some)
        k += some
        left -= some


cdef void load_count_missing(load_t *l, int64_t now) noexcept nogil:
    """What has not come back counts with its age; what was due and never went, with its age at the end."""
    cdef load_conn *c
    cdef sent_t *sent
    cdef size_t i, j
    cdef uint64_t k
    for i in range(l.n):
        c = &l.conns[i]
        for j in range(c.entries):
            sent = &c.sent[(c.first + j) % l.pipeline]
            hist_record(l.since_sent, now - sent.when, sent.n)
        if l.interval > 0:
            for k in range(c.back, c.back + c.in_flight):
                hist_record(l.since_due, now - load_due(l, c, k), 1)
            conn_count_owed(l, c)


cdef void load_run(load_t *l) noexcept nogil:
    cdef int64_t begun = rio_monotonic_ns()
    cdef int64_t used = rio_thread_ns()
    cdef int64_t now = begun
    cdef size_t i
    cdef int asked
    l.last = now
    if l.interval > 0:
        rio_wake_exactly(True)
    else:
        for i in range(l.n):
            conn_fill_window(l, &l.conns[i], rio_monotonic_ns())
    while l.phase == SENDING:
        now = rio_monotonic_ns()
        if now >= l.end or rio_bool_get(&l.stopping):
            break
        if l.interval > 0:
            load_schedule_due(l, now)
        if l.in_flight == 0:
            l.last = now
        load_turn(l, now)
    l.end = min(l.end, rio_monotonic_ns())
    if l.interval > 0:
        load_schedule_due(l, l.end - 1)   # goes no more, but was due
    if rio_bool_get(&l.stopping):
        l.last = l.end
    if l.phase == SENDING:
        load_drain(l)
    while l.phase == DRAINING and l.in_flight:
        now = rio_monotonic_ns()
        asked = rio_bool_get(&l.stopping)
        if asked > 1 or (asked and now - l.last >= min(l.stall, <int64_t>FAREWELL)):
            break
        load_turn(l, now)
    if l.begin < l.end:
        load_count_missing(l, rio_monotonic_ns())
    rio_wake_exactly(False)
    l.phase = OVER
    l.used = rio_thread_ns() - used
    l.lasted = rio_monotonic_ns() - begun


cdef void *load_thread(void *data) noexcept nogil:
    """Be the thread of a load loop: C only, so that no error of Python's can end it or lose its outcome."""
    cdef load_t *load = <load_t *>data
    load_run(load)
    rio_bool_set(&load.ended, True)
    while write(load.wake_fd, b"e", 1) < 0 and errno == EINTR:
        pass
    return NULL


def monotonic_ns():
    """The clock of run()'s start."""
    return rio_monotonic_ns()


def messages(Py_ssize_t size):
    """The messages that every LoadLoop sends: a cycle of them, and its first bytes again.

    Each begins with its number and ends with a newline; in between are letters and digits without a pattern. Where
    that does not fit it is cut: two bytes are a random character and the newline.
    """
    cdef const char *letters = LETTERS
    cdef uint64_t state = <uint64_t>size
    cdef Py_ssize_t count, length, i, number, place
    cdef bytes cycle
    cdef char *data
    if size < 1:
        raise ValueError(f"a message has at least one byte, not {size}")
    count = max(3, min(<Py_ssize_t>MESSAGES, CYCLE_MAX // size))
    length = count * size
    cycle = PyBytes_FromStringAndSize(NULL, length + CHUNK)
    data = cycle
    for i in range(length):
        state = state * 6364136223846793005ULL + 1442695040888963407ULL   # Knuth, MMIX
        data[i] = letters[(state >> 33) % 62]
    for i in range(count):
        if size > 16:
            number = i
            for place in range(6, -1, -1):
                data[i * size + place] = <char>(c'0' + number % 10)
                number //= 10
            data[i * size + 7] = c' '
        data[(i + 1) * size - 1] = c'\n'
    for i in range(CHUNK):
        data[length + i] = data[i]   # written already where the cycle is shorter
    return cycle


@cython.final
cdef class LoadLoop:
    """The load of one thread on connected stream sockets, done once: by run(), or by start() in a thread of its own.

    fds: the sockets, which stay the caller's and open until this is gone. cycle: what messages(message_bytes) gave,
    shared by all loops. pipeline: messages under way on a connection at most, with a rate too. rate: messages per
    second of this loop, its connections taking turns; None: as fast as they come back. Seconds: warmup, in which
    nothing is counted; duration, after it; stall_timeout without a byte coming back, while some should; phase, by
    which the schedule begins later. first and step: the connections' numbers begin with it and go on by it; each
    begins at another place in the cycle. without_epoll: use poll(2).
    """

    OUTCOMES = ("done", "wrong echo", "lost", "stalled", "failed")

    cdef load_t l
    cdef bint begun      # the fields are set
    cdef bytes cycle
    cdef rio_flag running   # run() or start() was called
    cdef bint joinable   # there is a thread that join() has not joined
    cdef pthread_t thread
    cdef int pid
    cdef sent_t *rings
    cdef size_t first
    cdef size_t step
    cdef int64_t warmup
    cdef int64_t duration
    cdef int64_t late

    def __cinit__(
        self,
        fds,
        bytes cycle not None,
        *,
        size_t message_bytes,
        uint64_t pipeline=1,
        rate=None,
        warmup=0.0,
        duration,
        stall_timeout=5.0,
        phase=0.0,
        size_t first=0,
        size_t step=1,
        bint without_epoll=False,
    ):
        cdef load_conn *c
        cdef size_t i
        cdef int err, fd
        self.l.poller.epoll = -1
        self.begun = True
        fds = list(fds)
        self.l.n = len(fds)
        self.l.length = len(cycle) - CHUNK if len(cycle) > CHUNK else 0
        if message_bytes < 1 or not self.l.length or self.l.length % message_bytes:
            raise ValueError("the cycle is not one of such messages")
        if not self.l.n or not 1 <= pipeline <= 1 << 20:
            raise ValueError("there must be a connection, and 1 to 1048576 messages under way on it")
        if rate is not None and not MIN_RATE <= rate <= 1e9:
            raise ValueError(f"a rate is {MIN_RATE:g} to 1e9 messages per second, not {rate!r}")
        self.cycle = cycle
        self.l.cycle = cycle
        self.l.size = message_bytes
        self.l.pipeline = pipeline
        self.l.interval = 1e9 / rate if rate is not None else 0
        self.warmup = to_nanoseconds(warmup)
        self.duration = to_nanoseconds(duration)
        self.late = to_nanoseconds(phase)
        self.l.stall = to_nanoseconds(stall_timeout)
        if self.l.stall < 0:
            self.l.stall = INT64_MAX
        if min(self.warmup, self.late) < 0 or not 0 <= self.duration <= 1 << 60:
            raise ValueError("the warm-up, the duration and the phase must be numbers of seconds")
        self.first, self.step = first, step
        self.l.since_sent = hist_new()
        self.l.since_due = hist_new() if self.l.interval > 0 else self.l.since_sent
        self.l.area = <char *>PyMem_RawMalloc(CHUNK)
        self.l.conns = <load_conn *>PyMem_RawCalloc(self.l.n, sizeof(load_conn))
        self.rings = <sent_t *>PyMem_RawCalloc(self.l.n * pipeline, sizeof(sent_t))
        if self.l.area == NULL or self.l.conns == NULL or self.rings == NULL:
            raise MemoryError
        err = poller_create(&self.l.poller, without_epoll)
        if err:
            raise os_error(err)
        for i in range(self.l.n):
            c = &self.l.conns[i]
            fd = fds[i]
            err = fd_open(&c.f, fd)
            if not err and c.f.kind != FD_SOCKET:
                raise ValueError(f"descriptor {fd} is not a socket")
            if not err:
                err = poller_add(&self.l.poller, fd, POLLIN, c)
            if err:
                raise os_error(err)
            c.sent = self.rings + i * pipeline
            c.out = c.inp = (first + i * step) * 7 % (self.l.length // message_bytes) * message_bytes

    def __dealloc__(self):
        if not self.begun:
            return
        if self.joinable and getpid() == self.pid:   # a child after a fork has no such thread
            rio_bool_set(&self.l.stopping, 2)
            pthread_join(self.thread, NULL)
            close(self.l.wake_fd)
        poller_close(&self.l.poller)
        PyMem_RawFree(self.rings)
        PyMem_RawFree(self.l.conns)
        PyMem_RawFree(self.l.area)
        if self.l.since_due != self.l.since_sent:
            PyMem_RawFree(self.l.since_due)
        PyMem_RawFree(self.l.since_sent)

    def run(self, start=None):
        """Do it: (outcome, connection, number, errno).

        outcome is one of OUTCOMES: "wrong echo", number being the byte's offset in the connection's stream; "lost",
        the server ended or reset the connection and so many bytes did not come back; "stalled", nothing came for too
        long and so many messages did not come back; "failed", waiting did. Any of them ends the load. Where it does
        not, nothing new is sent after the duration, and all that is under way comes back first: "done".

        start: when the first message is due, on monotonic_ns(); by default, now. RuntimeError for a second call. No
        signal handler runs in this thread meanwhile.
        """
        self.schedule(start)
        with nogil:
            load_run(&self.l)
        return self.outcome()

    def start(self, start=None, *, int wake_fd):
        """Do it in a thread of its own, in which no signal is handled.

        ``wake_fd``: the writing end of a pipe, of which a duplicate is kept until join(); a byte is written to it when
        the loop has ended. OSError where the system allows no thread.
        """
        cdef sigset_t before
        cdef int err
        self.schedule(start)
        self.l.wake_fd = fcntl(wake_fd, F_DUPFD_CLOEXEC, 0)
        if self.l.wake_fd < 0:
            raise os_error(errno)
        rio_signals_hold(&before)
        err = pthread_create(&self.thread, NULL, load_thread, &self.l)
        rio_signals_release(&before)
        if err:
            close(self.l.wake_fd)
            raise os_error(err)
        self.joinable = True
        self.pid = getpid()

    cdef int schedule(self, start) except -1:
        cdef int64_t zero = rio_monotonic_ns() if start is None else start
        if not rio_flag_take(&self.running):
            raise RuntimeError("a load loop runs once")
        self.l.start = zero + self.late
        self.l.begin = zero + self.warmup
        self.l.end = self.l.begin + self.duration
        return 0

    @property
    def ended(self):
        """Whether a loop that start() began has ended. From any thread."""
        return bool(rio_bool_get(&self.l.ended))

    @property
    def failed(self):
        """Whether it has ended with another outcome than "done"."""
        return bool(rio_bool_get(&self.l.ended)) and self.l.outcome != DONE

    def join(self):
        """Wait until the thread of start() has ended, if there is one, and close the poller; no signal interrupts it.

        A loop that was joined cannot be started any more.
        """
        if self.joinable and getpid() != self.pid:   # a child after a fork has no such thread
            return
        with nogil:
            if self.joinable:
                pthread_join(self.thread, NULL)
                close(self.l.wake_fd)
            self.joinable = False
            rio_flag_take(&self.running)
            poller_close(&self.l.poller)

    def outcome(self):
        """What run() returns; after join(), where start() began it."""
        return (
            self.OUTCOMES[<int>self.l.outcome],
            self.first + self.l.culprit * self.step,
            self.l.number,
            self.l.err,
        )

    @property
    def busy(self):
        """The part of its time, 0.0 to 1.0, in which the thread had a processor. After run() or join()."""
        return <double>self.l.used / <double>self.l.lasted if self.l.lasted > 0 else 0.0

    def stop(self):
        """End it early: nothing new is sent, and at most a second is waited for what is under way; called again, none.

        From any thread, and before run() too.
        """
        if rio_bool_get(&self.l.stopping) < 2:
            rio_bool_set(&self.l.stopping, rio_bool_get(&self.l.stopping) + 1)

    def counts(self):
        """Messages that came back in the measured time, all that came back, and those under way. From any thread."""
        return rio_load_relaxed(&self.l.measured), rio_load_relaxed(&self.l.echoed), rio_load_relaxed(&self.l.in_flight)

    @property
    def measured_seconds(self):
        """How long the measured time was; 0.0 if it did not come to that. After run()."""
        return max(self.l.end - self.l.begin, 0) / 1e9

    def add_to(self, Histogram histogram not None, *, bint corrected=True):
        """Add the latencies to a histogram, as counted so far; from any thread.

        corrected: since the message was due; else since it was sent. Without a rate they are the same. At the end
        there are as many as messages came back after the warm-up, and those that were still under way or due: with
        the time they took if they came back later, else with their age when they were given up.
        """
        histogram.take(self.l.since_due if corrected else self.l.since_sent)

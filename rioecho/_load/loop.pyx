"""The load that one thread puts on an echo server: many connections, every byte checked, every message timed, no GIL.

In a closed loop each connection keeps ``pipeline`` messages in flight and sends another for each echo. In an open loop
(with a rate) the messages have a fixed schedule, whatever the server does. A message that cannot be sent on time,
because earlier echoes are late, counts from its scheduled time. This corrects for coordinated omission (G. Tene).
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from rioecho._core.convert cimport os_error, to_nanoseconds
from rioecho._core.fdio cimport FD_SOCKET, fd_open
from rioecho._load.histogram cimport Histogram, hist_new
from rioecho._load.connection cimport ARRIVED, AWAITED, CHUNK, DONE, DOWN, load_conn, load_t, sent_t
from rioecho._load.turns cimport load_run, load_thread
from rioecho._core.poller cimport poller_add, poller_close, poller_create, poller_init, poller_named
from rioecho._core.posix cimport (
    F_DUPFD_CLOEXEC,
    POLLIN,
    close,
    fcntl,
    getpid,
    pthread_create,
    pthread_join,
    pthread_t,
    rio_bool_get,
    rio_bool_set,
    rio_flag,
    rio_flag_take,
    rio_load_relaxed,
    rio_monotonic_ns,
    rio_signals_hold,
    rio_signals_release,
    sigset_t,
)

cdef enum:
    MESSAGES = 251                # in the cycle, unless they are large; a prime, so that no buffer holds a multiple
    CYCLE_MAX = 1 << 22           # maximum size in bytes of a cycle of large messages


cdef bytes LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
cdef double MIN_RATE = 2.0 ** -31   # of a loop: one message in 68 years, a time that the clock can hold


def monotonic_ns():
    """Return the time in nanoseconds on the clock of the ``start`` argument of ``run()``."""
    return rio_monotonic_ns()


def messages(Py_ssize_t size):
    """Return the cycle of messages of ``size`` bytes that a LoadLoop sends, with its first bytes repeated at the end.

    Each message begins with its number and ends with a newline, with letters and digits without a pattern between them.
    A message of 16 bytes or fewer has no number: one of two bytes is a random character and the newline. Raises
    ValueError if ``size`` is less than 1.
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
        data[length + i] = data[i]   # already written, even if the cycle is shorter than CHUNK
    return cycle


@cython.final
cdef class LoadLoop:
    """The load of one thread on connected stream sockets. It runs once: by run(), or by start() in its own thread.

    ``fds``: the sockets. The caller owns them and keeps them open while the LoadLoop exists. ``cycle``: the result of
    ``messages(message_bytes)``, shared by all loops. ``pipeline``: maximum number of messages in flight on a
    connection. ``rate``: messages per second of this loop, whose connections alternate; None: a closed loop.

    In seconds: ``warmup``, in which nothing is counted; ``duration``, the time measured after it; ``stall_timeout``,
    the maximum time without a received byte while messages are in flight; ``phase``, a delay of the schedule.

    ``first`` and ``step``: the numbers of the connections are ``first``, ``first + step`` and so on; each connection
    begins at another place in the cycle. ``poller``: "epoll", "kqueue", "poll", or None: the best of the system. Raises
    ValueError or TypeError for an invalid argument, OSError for a descriptor or a poller that cannot be used.

    ``reconnect``: a lost connection does not end the load. Its messages in flight count as lost; lost() reports it, and
    replace() continues it on another socket.
    """

    OUTCOMES = ("done", "wrong echo", "lost", "stalled", "failed")

    cdef load_t l
    cdef bint begun      # the fields are set
    cdef bytes cycle
    cdef rio_flag running   # run() or start() was called
    cdef bint joinable   # the thread of start() exists and has not been joined
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
        poller=None,
        bint reconnect=False,
    ):
        cdef load_conn *c
        cdef size_t i
        cdef int err, fd
        self.l.wake_fd = -1
        poller_init(&self.l.poller)
        self.l.reconnect = reconnect
        self.begun = True
        fds = list(fds)
        self.l.n = len(fds)
        self.l.length = len(cycle) - CHUNK if len(cycle) > CHUNK else 0
        if message_bytes < 1 or not self.l.length or self.l.length % message_bytes:
            raise ValueError(f"the cycle is not one of messages of {message_bytes} bytes")
        if not self.l.n or not 1 <= pipeline <= 1 << 20:
            raise ValueError("there must be at least one connection, and 1 to 1048576 messages in flight on it")
        if rate is not None and not MIN_RATE <= rate <= 1e9:
            raise ValueError(f"a rate must be {MIN_RATE:g} to 1e9 messages per second, not {rate!r}")
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
        if self.l.interval > 0:
            self.l.lateness = hist_new()
        self.l.area = <char *>PyMem_RawMalloc(CHUNK)
        self.l.conns = <load_conn *>PyMem_RawCalloc(self.l.n, sizeof(load_conn))
        self.rings = <sent_t *>PyMem_RawCalloc(self.l.n * pipeline, sizeof(sent_t))
        if self.l.area == NULL or self.l.conns == NULL or self.rings == NULL:
            raise MemoryError
        err = poller_create(&self.l.poller, poller_named(poller))
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
            self.ask_to_stop(2)
            pthread_join(self.thread, NULL)
            close(self.l.wake_fd)
        poller_close(&self.l.poller)
        PyMem_RawFree(self.rings)
        PyMem_RawFree(self.l.conns)
        PyMem_RawFree(self.l.area)
        if self.l.since_due != self.l.since_sent:
            PyMem_RawFree(self.l.since_due)
        PyMem_RawFree(self.l.since_sent)
        PyMem_RawFree(self.l.lateness)

    def run(self, start=None):
        """Run the load in this thread; return ``(outcome, connection, number, errno)``.

        ``outcome`` is one of OUTCOMES:

        - "done": the duration has ended and everything in flight was echoed, or stop() ended the load;
        - "wrong echo": ``number`` is the offset of the wrong byte in the connection's stream;
        - "lost": the server closed or reset the connection; ``number`` bytes were not echoed;
        - "stalled": no byte was received within ``stall_timeout``, while messages were in flight or all connections
          were lost; ``number`` messages were not echoed;
        - "failed": waiting for the sockets failed with ``errno``.

        Any outcome but "done" ends the load at once.

        ``start``: when the first message is due, on the clock of monotonic_ns(); by default now. Raises RuntimeError if
        the loop has already run. No signal handler runs in this thread during the call.
        """
        self.schedule(start)
        with nogil:
            load_run(&self.l)
        return self.outcome()

    def start(self, start=None, *, int wake_fd):
        """Run the load in a thread of its own, in which no signal is handled.

        ``wake_fd``: the write end of a pipe. A byte is written to it when the loop has ended, and when lost() has
        something to report; a duplicate of it is kept until join(). Raises OSError if the system allows no thread,
        RuntimeError if the loop has already run.
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
        """Whether a loop that start() began has ended. May be read in any thread."""
        return bool(rio_bool_get(&self.l.ended))

    @property
    def failed(self):
        """Whether a loop that start() began has ended with an outcome other than "done"."""
        return bool(rio_bool_get(&self.l.ended)) and self.l.outcome != DONE

    def join(self):
        """Wait for the thread of start() to end, if there is one, and close the poller. No signal interrupts the call.

        A loop cannot be started after this call.
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
        """Return the result of run(). If start() began the loop, call this after join()."""
        return (
            self.OUTCOMES[<int>self.l.outcome],
            self.first + self.l.culprit * self.step,
            self.l.number,
            self.l.err,
        )

    @property
    def busy(self):
        """The fraction of the run, 0.0 to 1.0, in which the thread used a processor. Valid after run() or join()."""
        return <double>self.l.used / <double>self.l.lasted if self.l.lasted > 0 else 0.0

    def stop(self):
        """End the load early.

        Nothing new is sent, and the loop ends when everything in flight is echoed, or after a second without a received
        byte. A second call ends the wait at once. May be called in any thread, also before run().
        """
        if rio_bool_get(&self.l.stopping) < 2:
            self.ask_to_stop(rio_bool_get(&self.l.stopping) + 1)

    cdef void ask_to_stop(self, int calls) noexcept:
        """Have the loop see ``calls`` calls of stop()."""
        rio_bool_set(&self.l.stopping, calls)
        rio_bool_set(&self.l.attention, True)   # the loop looks at the former only after this

    def lost(self):
        """Return the indices in ``fds`` of the connections lost since the last call.

        The loop does not use their descriptors any more: the caller may close them. May be called in any thread, but
        not in two at a time; the same holds for replace().
        """
        cdef size_t i
        found = []
        if rio_bool_get(&self.l.told) or not self.joinable:
            rio_bool_set(&self.l.told, False)   # before looking, so that a later loss is reported again
            for i in range(self.l.n):
                if rio_bool_get(&self.l.conns[i].link) == DOWN:
                    rio_bool_set(&self.l.conns[i].link, AWAITED)
                    found.append(i)
        return found

    def replace(self, size_t index, int fd):
        """Continue the lost connection ``index`` on another connected stream socket.

        The loop takes it over within 20 ms, and may use it until the loop ends or lost() returns the index again.
        Raises ValueError if lost() has not returned the index.
        """
        if index >= self.l.n or rio_bool_get(&self.l.conns[index].link) != AWAITED:
            raise ValueError(f"connection {index} is not a lost one")
        self.l.conns[index].next_fd = fd
        rio_bool_set(&self.l.conns[index].link, ARRIVED)
        rio_bool_set(&self.l.attention, True)

    @property
    def lost_messages(self):
        """The number of messages that were sent, at least in part, and lost with their connection."""
        return rio_load_relaxed(&self.l.lost)

    def counts(self):
        """Return the number of messages echoed in the measured time, of all echoed, and of those in flight.

        May be called in any thread.
        """
        return rio_load_relaxed(&self.l.measured), rio_load_relaxed(&self.l.echoed), rio_load_relaxed(&self.l.in_flight)

    @property
    def measured_seconds(self):
        """The measured time in seconds; 0.0 if the loop ended before. Valid after run() or join()."""
        return max(self.l.end - self.l.begin, 0) / 1e9

    def add_to(self, Histogram histogram not None, *, bint corrected=True):
        """Add the latencies recorded so far to a histogram. May be called in any thread.

        ``corrected``: measured from the scheduled time of a message, else from when it was sent. Without a rate both
        are the same. At the end there is a latency for each message echoed after the warm-up, and for each that was
        still in flight or due: the time until its echo or, if there was none, its age when the loop ended.
        """
        histogram.take(self.l.since_due if corrected else self.l.since_sent)

    def add_lateness_to(self, Histogram histogram not None):
        """Add the lateness of the loop itself to a histogram: nothing without a rate. May be called in any thread.

        It is the time after which a message that was due was released for sending, because this thread was busy or did
        not run. The wait for room in the pipeline is not part of it. There is a value for each message that was due in
        the measured time.
        """
        if self.l.lateness != NULL:
            histogram.take(self.l.lateness)

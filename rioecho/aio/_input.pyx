"""The call that waits for what comes on a Rio of asyncio, its turn and its time: class Input."""

import asyncio

from libc.errno cimport EAGAIN
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.buffer cimport buffer_resize
from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport deadline_after
from rioecho._core.posix cimport rio_flag, rio_flag_closed, rio_monotonic_ns
from rioecho._rio.framing cimport Framing
from rioecho._rio.input cimport Mark, enter, in_frame, leave_reading
from rioecho.aio._arrival cimport Arrival
from rioecho.aio._call cimport Call

from rioecho.errors import ConcurrentCall

cdef object current_task = asyncio.current_task


cdef enum:
    SOON = 1_000_000   # nanoseconds; the loop's clock may be coarse


cdef class Input(Arrival):
    def __cinit__(self, *args, **options):
        self.timeout_ns = self.idle_ns = -1

    # ---- what the caller sees

    @property
    def timeout(self):
        """The default time limit of one call in seconds; ``None`` for no limit. It can be set.

        The ``timeout`` argument of a method takes precedence.
        """
        return None if self.timeout_ns < 0 else self.timeout_ns / 1e9

    @timeout.setter
    def timeout(self, seconds):
        self.timeout_ns = to_nanoseconds(seconds)

    @property
    def idle_timeout(self):
        """The time in seconds in which at least one byte must come, or go; ``None`` for no limit. It can be set.

        A call that waits for longer raises ``TimeoutError``, whatever its ``timeout``.
        """
        return None if self.idle_ns < 0 else self.idle_ns / 1e9

    @idle_timeout.setter
    def idle_timeout(self, seconds):
        cdef int64_t ns = to_nanoseconds(seconds)
        if ns == 0:
            raise ValueError("idle_timeout must be None or more than 0 seconds")
        self.idle_ns = ns
        if self.reader is not None:   # it counts from now on for the call that waits
            self.came = rio_monotonic_ns()
            if ns > 0:
                self.arm(self.came + ns)

    def read_buffered(self):
        """Return all buffered bytes and remove them from the buffer.

        Raises ``ConcurrentCall`` while a call waits, or in a ``frame()`` of another task.
        """
        self.exclude(None)
        result = Framing.read_buffered(self)
        if self.paused:
            self.read_on()
        return result

    def unread(self, data, /):
        """Put ``data``, a bytes-like object, in front of the buffered bytes, so that it is read next.

        It may come from another reader, the detached rest of a blocking ``Rio`` for example. Returns its length. On
        ``MemoryError`` nothing has changed. Raises ``ConcurrentCall`` while a call waits, or in a ``frame()`` of
        another task.
        """
        self.exclude(None)
        if self.inp.give != NULL and self.inp.data != NULL:
            # The loop has a view of the memory behind the held bytes, and may have stored bytes there already.
            enter(self, &self.reading)
            try:
                if buffer_resize(&self.inp, self.inp.cap) < 0:
                    raise MemoryError
            finally:
                leave_reading(self)
        return Framing.unread(self, data)

    # ---- calls

    cdef int refuse(self, rio_flag *side) except -1:
        """Raise the reason why the reading side could not be entered."""
        if rio_flag_closed(side):
            raise ValueError("I/O operation on a closed Rio")
        raise ConcurrentCall("another call is using this Rio, in another thread or in the event loop")

    cdef int wait_turn(self, rio_flag *side) except -1:
        """Begin a call. The frames are a task's, whichever thread runs it."""
        if not self.resume(True):
            self.refuse(side)
        return 0

    cdef int begin(self, Call call) except -1:
        """Begin a call. Raises ``ConcurrentCall`` if another one waits, or a frame of another task is open."""
        if self.reader is not None or in_frame(self):
            self.exclude(call.task)
        elif self.spare is not None:
            self.take_spare()
        return 0

    cdef int exclude(self, object task) except -1:
        """Raise ``ConcurrentCall`` if a call waits, or a frame is open that is not ``task``'s or the current task's."""
        if self.has_closed:
            raise ValueError("I/O operation on a closed Rio")
        if self.reader is not None:
            raise ConcurrentCall(
                f"another task waits in {self.reader.name}() on this Rio: one reader and one writer at a time"
            )
        if in_frame(self):
            enter(self, &self.reading)   # ends the frames that were dropped
            leave_reading(self)
            if in_frame(self) and not (task is self.frame_task or current_task(self.loop) is self.frame_task):
                raise ConcurrentCall("another task has a frame() open on this Rio")
        if self.spare is not None:
            self.take_spare()
        return 0

    cdef int entering_frame(self) except -1:
        """Note the task of the outermost frame."""
        task = current_task(self.loop)
        if self.reader is not None:
            raise ConcurrentCall(f"another task waits in {self.reader.name}() on this Rio")
        if not in_frame(self):
            self.frame_task = task
        elif task is not self.frame_task:
            raise ConcurrentCall("another task has a frame() open on this Rio")
        return 0

    cdef void end_frames(self, Mark last, bint rewind) noexcept:
        """End frames. A call that waits, in a task that was begun in one, goes on with what is held now."""
        Framing.end_frames(self, last, rewind)
        if self.innermost is None:
            self.frame_task = None
        if self.reader is not None:
            self.reader.asked.whole = self.reader.asked.scanned = 0
            self.wake()

    cdef object wait(self, Call call, bint again):
        """Return a future for a call for which bytes are missing, or raise why they will not come."""
        cdef int64_t left
        if self.lost:
            self.raise_lost()
        if not again:
            call.timeout = self.timeout_ns if call.given is ... else to_nanoseconds(call.given)
            if call.timeout == 0:
                raise BlockingIOError(EAGAIN, "the call would wait and its timeout is 0; the bytes received are kept")
            self.before_wait()
            if self.reader is not None:   # the transport has run what began a call
                self.exclude(None)
            if self.lost:
                self.raise_lost()
            call.deadline = deadline_after(call.timeout) if call.timeout > 0 else INT64_MAX
            self.came = 0 if self.idle_ns < 0 else rio_monotonic_ns()
        if call.timeout > 0 or self.idle_ns >= 0:
            left = self.time_left(call)
            if left <= 0:
                self.raise_late(call)
            self.arm(rio_monotonic_ns() + left)
        self.waiter = self.loop.create_future()
        self.woken = False
        self.reader = call
        self.protocol.reading = self
        if self.paused:
            self.steer()
        return self.waiter

    cdef void finish(self, Call call) noexcept:
        """Forget a call that has waited; its future is of no use any more."""
        if self.reader is call:
            waiter = self.waiter
            self.reader = self.waiter = None
            self.protocol.reading = None
            self.let_go(waiter)

    cdef int let_go(self, object waiter) except -1:
        waiter.cancel()
        return 0 if self.has_closed else self.steer()

    cdef bint asleep(self, Call call) noexcept:
        return self.reader is call and not self.woken

    cdef int before_wait(self) except -1:
        """Send the buffered output before a call waits."""
        raise NotImplementedError

    # ---- time

    cdef int64_t time_left(self, Call call) except? -1:
        """Return the nanoseconds until the call is over, by its timeout or for want of bytes; at most 0 if it is."""
        cdef int64_t end = call.deadline
        if self.idle_ns >= 0:
            end = min(end, self.came + self.idle_ns)
        return end - rio_monotonic_ns()

    cdef int raise_late(self, Call call) except -1:
        if self.idle_ns >= 0 and self.came + self.idle_ns < call.deadline:
            raise TimeoutError(f"idle: no byte came for {self.idle_ns / 1e9:g} s; the bytes received are kept")
        raise TimeoutError(f"timed out after {call.timeout / 1e9:g} s; the bytes received are kept")

    cdef int arm(self, int64_t when) except -1:
        """See to it that ``tick()`` is called at that time, or before."""
        if self.timer is not None:
            if self.timer_at <= when:
                return 0
            self.timer.cancel()
        self.timer_at = when
        self.timer = self.loop.call_later(max(when - rio_monotonic_ns(), <int64_t>SOON) / 1e9, self.protocol.tick)
        return 0

    cdef int tick(self) except -1:
        """Look at the time of the call that waits. Most calls are over by then, so there is one timer for all."""
        cdef int64_t left
        self.timer = None
        if self.reader is not None:
            left = self.time_left(self.reader)
            if left <= 0:
                self.wake()   # it tries once more, and raises
            elif left < INT64_MAX // 2:
                self.arm(rio_monotonic_ns() + left)
        return 0

    cdef int lose(self, object error) except -1:
        Arrival.lose(self, error)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

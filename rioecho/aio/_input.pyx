"""What a Rio of asyncio has received, and the call that waits for more: class Input.

The loop stores what comes in the buffer itself, behind the held bytes (_room.pyx). A peer is not read from while more
than ``bufsize`` bytes are held that no call wants.
"""

import asyncio
import ssl
from copy import copy
from weakref import ref

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memmove

from rioecho._core.buffer cimport (
    buffer_added,
    buffer_free,
    buffer_held,
    buffer_reserve,
    buffer_resize,
    buffer_room,
)
from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport deadline_after
from rioecho._core.posix cimport (
    MSG_DONTWAIT,
    RIO_CLOSED,
    recv,
    rio_flag,
    rio_flag_closed,
    rio_flag_put,
    rio_monotonic_ns,
)
from rioecho._rio.fed cimport HOLD, INTO, NUMBER
from rioecho._rio.framing cimport Framing
from rioecho._rio.input cimport Mark, enter, in_frame, leave_reading, let_others_in
from rioecho.aio._call cimport Awaited, Call
from rioecho.aio._room cimport lend

from rioecho.errors import ConcurrentCall

cdef object current_task = asyncio.current_task


cdef enum:
    SCRATCH = 1 << 16        # size of the memory for bytes that come after close(), which nobody reads
    SPARE = 256              # size of the memory for what comes when there is none for a larger buffer
    LAST_WORDS = 1 << 16     # number of bytes to read at once when the connection is lost
    SOON = 1_000_000         # nanoseconds; the loop's clock may be coarse


cdef class Input(Awaited):
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
                raise BlockingIOError(EAGAIN, "the call would wait and its timeout is 0; buffered bytes are kept")
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

    cdef void read_on(self) noexcept:
        self.steer()

    cdef int wake(self) except -1:
        """Let the call that waits try again."""
        if self.waiter is not None and not self.waiter.done():
            self.woken = True
            self.waiter.set_result(None)
        return 0

    cdef int before_wait(self) except -1:
        """Send the buffered output before a call waits."""
        return 0

    cdef bint choked(self) noexcept:
        """Report whether so much output is unsent that nothing more is to be read."""
        return False

    # ---- time

    cdef int64_t time_left(self, Call call) except? -1:
        """Return the nanoseconds until the call is over, by its timeout or for want of bytes; at most 0 if it is."""
        cdef int64_t end = call.deadline
        if self.idle_ns >= 0:
            end = min(end, self.came + self.idle_ns)
        return end - rio_monotonic_ns()

    cdef int raise_late(self, Call call) except -1:
        if self.idle_ns >= 0 and self.came + self.idle_ns < call.deadline:
            raise TimeoutError(f"idle: no byte came for {self.idle_ns / 1e9:g} s; buffered bytes are kept")
        raise TimeoutError(f"timed out after {call.timeout / 1e9:g} s; buffered bytes are kept")

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

    # ---- what the loop brings

    cdef int steer(self) except -1:
        """Read from the transport, or stop reading."""
        cdef bint stop = (
            self.choked() or self.spare_size > 0 or (self.reader is None and buffer_held(&self.inp) > self.inp.base)
        )
        if stop == self.paused or self.transport is None or not self.can_read or self.transport.is_closing():
            return 0
        self.paused = stop
        if stop:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
        return 0

    cdef object room(self, Py_ssize_t hint):
        """Return writable memory behind the held bytes."""
        cdef size_t held, need
        if self.has_closed:
            return memoryview(bytearray(SCRATCH))
        if self.spare is not None:
            self.take_spare()
        enter(self, &self.reading)
        try:
            held = buffer_held(&self.inp)
            need = held + 1
            if self.reader is None:
                need = held + self.inp.base // 4 + 1
            elif (
                self.reader.asked.what == NUMBER
                or self.reader.asked.what == HOLD
                or (self.reader.asked.what == INTO and self.reader.asked.strict)
            ):
                need = max(need, min(self.reader.asked.n, held * 2 + self.inp.base))
            if self.tls and hint > 0:
                # What TLS has received but not decrypted. At the end of the input it is not asked for more.
                need = max(need, held + <size_t>hint)
            if buffer_reserve(&self.inp, need) < 0 and buffer_reserve(&self.inp, held + 1) < 0:
                self.lent = NULL
                self.spare = bytearray(SPARE)
                return memoryview(self.spare)
            self.lent = self.inp.data + self.inp.w
            return lend(self)
        finally:
            leave_reading(self)

    cdef int came_in(self, size_t n) except -1:
        """Hold n more bytes, which the loop has stored in ``room()``."""
        if self.has_closed:
            return 0
        if self.lent == NULL:
            self.spare_size = n
            return self.came_new()
        enter(self, &self.reading)
        try:
            if self.lent != self.inp.data + self.inp.w:   # a finalizer, run in between, has moved the held bytes
                if buffer_reserve(&self.inp, buffer_held(&self.inp) + n) < 0:
                    raise MemoryError
                memmove(self.inp.data + self.inp.w, self.lent, n)
            buffer_added(&self.inp, n)
        finally:
            leave_reading(self)
        return self.came_new()

    cdef int came_copy(self, object data) except -1:
        """Hold the bytes of ``data`` too. If there is no memory for a copy, keep the object until there is."""
        if self.has_closed or not len(data):
            return 0
        if self.spare is not None:
            self.spare = bytes(self.spare[: self.spare_size]) + data
            self.spare_size = len(self.spare)
            return self.came_new()
        self.spare = data
        self.spare_size = len(data)
        try:
            self.take_spare()
        except MemoryError:
            pass   # the next call raises it
        return self.came_new()

    cdef int take_spare(self) except -1:
        """Hold the bytes for which there was no memory before, or raise ``MemoryError`` again."""
        cdef const unsigned char[::1] view = self.spare
        enter(self, &self.reading)
        try:
            if self.spare_size:
                self.put(<const char *>&view[0], self.spare_size)
            self.spare = None
            self.spare_size = 0
        finally:
            leave_reading(self)
        return 0

    cdef int came_new(self) except -1:
        if self.came:
            self.came = rio_monotonic_ns()
        if self.reader is None:
            if buffer_held(&self.inp) > self.inp.base:
                self.steer()
        elif self.spare_size or self.may_have(&self.reader.asked):
            self.wake()
        if self.spare_size:
            self.steer()
        return 0

    cdef int end_input(self) except -1:
        """Note the end of the input."""
        if self.tls and not self.ended and not self.has_closed and self.transport is not None:
            tls = self.transport.get_extra_info("ssl_object")
            if tls is not None:
                self.read_decrypted(tls)   # asyncio's TLS forgets what it could not give because reading was paused
        self.ended = True
        return self.wake()

    cdef int lose(self, object error) except -1:
        """Note the end of the connection."""
        if self.lost:
            return 0
        if not self.ended and not self.has_closed:
            self.read_last_words()
        self.lost = True
        self.error = None if error is None else error.with_traceback(None)   # its frames would keep what they hold
        self.transport = None
        if error is None:
            self.ended = True
        self.wake()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.lost_waiter is not None and not self.lost_waiter.done():
            self.lost_waiter.set_result(None)
        return 0

    cdef int read_last_words(self) except -1:
        """Read what the kernel, or TLS, still has of a connection that a failed write has ended."""
        cdef ssize_t n = 1
        cdef int fd
        if self.transport is None:
            return 0
        tls = self.transport.get_extra_info("ssl_object")
        if tls is not None:
            return self.read_decrypted(tls)
        sock = self.transport.get_extra_info("socket")
        if sock is None:
            return 0
        fd = sock.fileno()
        if fd < 0:
            return 0
        enter(self, &self.reading)
        try:
            while n > 0:
                if buffer_reserve(&self.inp, buffer_held(&self.inp) + LAST_WORDS) < 0:
                    break
                n = recv(fd, self.inp.data + self.inp.w, buffer_room(&self.inp), MSG_DONTWAIT)
                if n > 0:
                    buffer_added(&self.inp, n)
                elif n < 0 and errno == EINTR:
                    n = 1
        finally:
            leave_reading(self)
        return 0

    cdef int read_decrypted(self, object tls) except -1:
        """Read what TLS has received, and not given because the transport was not read from."""
        try:
            while True:
                data = tls.read(LAST_WORDS)
                if not data:
                    break
                self.came_copy(data)
        except ssl.SSLError:
            pass   # there is no more
        return 0

    cdef int raise_lost(self) except -1:
        """Raise what has ended the connection."""
        if self.error is None:
            raise ConnectionResetError("the connection was closed")
        raise copy(self.error)   # each call its own: they are changed, and may be raised in several tasks

    cdef int shut(self) except -1:
        """Close the reading side; a call that waits raises ``ValueError``."""
        if self.has_closed:
            return 0
        enter(self, &self.reading)
        self.has_closed = True
        rio_flag_put(&self.reading, RIO_CLOSED)
        let_others_in(self)
        buffer_free(&self.inp)
        return self.wake()

    # ---- what the part that writes does

    cdef int connect(self, object transport) except -1:
        """Take over a transport."""
        self.transport = transport
        self.tls = transport.get_extra_info("sslcontext") is not None
        self.can_read = hasattr(transport, "pause_reading")
        return 0

    cdef int stall(self, bint stalled) except -1:
        """Note that the transport takes no more output, or that it does again."""
        return 0

    cdef int pump(self) except -1:
        """Give the buffered output to the transport."""
        return 0


cdef class Protocol:
    """What the loop calls: the protocol of the transport.

    It has no strong reference to the Rio unless a call waits, so that one that is dropped unclosed is noticed.
    """

    def __cinit__(self, Input owner not None, made=None):
        self.owner = ref(owner)
        self.made = made
        if made is not None:
            self.reading = owner   # until the connection is made

    def connection_made(self, transport):
        cdef Input owner = self.owner()
        if owner is None:
            transport.abort()
        else:
            owner.connect(transport)
            made, self.made, self.reading = self.made, None, None
            if made is not None:
                made(owner)

    def get_buffer(self, sizehint):
        cdef Input owner = self.owner()
        return memoryview(bytearray(SCRATCH)) if owner is None else owner.room(sizehint)

    def buffer_updated(self, nbytes):
        cdef Input owner = self.owner()
        if owner is not None:
            owner.came_in(nbytes)

    def data_received(self, data):
        cdef Input owner = self.owner()
        if owner is not None:
            owner.came_copy(data)

    def eof_received(self):
        """Note the end of the input, and keep the connection open for output where that is possible."""
        cdef Input owner = self.owner()
        if owner is None:
            return False
        owner.end_input()
        return not owner.tls

    def connection_lost(self, error):
        cdef Input owner = self.owner()
        if owner is not None:
            owner.lose(error)

    def pause_writing(self):
        cdef Input owner = self.owner()
        if owner is not None and not owner.tls:
            owner.stall(True)

    def resume_writing(self):
        cdef Input owner = self.owner()
        if owner is not None and not owner.tls:
            owner.stall(False)

    def stall(self, stalled):
        """Note what the transport below TLS says of its output."""
        cdef Input owner = self.owner()
        if owner is not None:
            owner.stall(stalled)

    def tick(self):
        """Look at the clock."""
        cdef Input owner = self.owner()
        if owner is not None:
            owner.tick()

    def pump(self):
        """Send what was written in the last turn of the loop."""
        cdef Input owner = self.owner()
        if owner is not None:
            owner.pump()

"""What has come for a Rio of asyncio, up to the end of the connection: class Arrival.

The loop stores what comes in the buffer itself, behind the held bytes (_room.pyx). A peer is not read from while more
than ``bufsize`` bytes are held that no call wants.
"""

import ssl
from copy import copy

from libc.errno cimport EINTR, errno

from rioecho._core.buffer cimport buffer_added, buffer_free, buffer_held, buffer_reserve, buffer_room
from rioecho._core.posix cimport MSG_DONTWAIT, RIO_CLOSED, recv, rio_flag_put, rio_monotonic_ns
from rioecho._rio.input cimport enter, leave_reading, let_others_in
from rioecho.aio._protocol cimport Endpoint, scratch
from rioecho.aio._room cimport missing


cdef enum:
    SPARE = 256            # size of the memory for what comes when there is none for a larger buffer
    LAST_WORDS = 1 << 16   # number of bytes to read at once when the connection is lost


cdef class Arrival(Endpoint):
    # ---- the call that waits for it

    cdef int wake(self) except -1:
        """Let the call that waits try again."""
        if self.waiter is not None and not self.waiter.done():
            self.woken = True
            self.waiter.set_result(None)
        return 0

    # ---- what the loop brings

    cdef int connect(self, object transport) except -1:
        self.transport = transport
        self.tls = transport.get_extra_info("sslcontext") is not None
        self.can_read = hasattr(transport, "pause_reading")
        return 0

    cdef void read_on(self) noexcept:
        self.steer()

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

    cdef bint choked(self) noexcept:
        """Report whether so much output is unsent that nothing more is to be read."""
        raise NotImplementedError

    cdef object room(self, Py_ssize_t hint):
        """Return writable memory behind the held bytes; if there is none, in the spare."""
        if self.has_closed:
            return scratch()
        if self.spare is not None:
            self.take_spare()
        view = self.lend(hint)
        if view is None:
            self.spare = bytearray(SPARE)
            return memoryview(self.spare)
        return view

    cdef size_t wanted(self, Py_ssize_t hint) noexcept:
        cdef size_t more = self.inp.base // 4 + 1 if self.reader is None else missing(self, &self.reader.asked)
        # Of TLS the hint is what it has received but not decrypted. At the end of the input it is not asked for more.
        return max(more, <size_t>hint) if self.tls and hint > 0 else more

    cdef int came_in(self, size_t n) except -1:
        if self.has_closed:
            return 0
        if self.lent == NULL:
            self.spare_size = n
        else:
            self.store(n)
        return self.came_new()

    cdef int came_copy(self, object data) except -1:
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
        if self.tls and not self.ended and not self.has_closed and self.transport is not None:
            tls = self.transport.get_extra_info("ssl_object")
            if tls is not None:
                self.read_decrypted(tls)   # asyncio's TLS forgets what it could not give because reading was paused
        self.ended = True
        return self.wake()

    cdef int lose(self, object error) except -1:
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

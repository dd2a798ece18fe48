"""One read from the source, whatever kind it is, within the time limit of the call.

The methods of a Rio call ``fill_once()`` or ``fill_towards()``, which read into the input buffer. Only a large read
receives elsewhere, in its result, which is the buffer's memory then (see _rio/result.pxd).
"""

from io import UnsupportedOperation

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t
from libc.string cimport memchr

from rioecho._core.buffer cimport buffer_added, buffer_held, buffer_reserve, buffer_room, buffer_trim
from rioecho._core.convert cimport os_error
from rioecho._core.fdio cimport FD_FILE, FD_SOCKET, fd_never_waits, fd_peek, fd_read, fd_read_waiting, would_block
from rioecho._core.posix cimport POLLIN, rio_assert, rio_flag_mine, rio_monotonic_ns
from rioecho._rio.input cimport let_others_in, show_held
from rioecho._rio.limits cimport SLICE, begin_wait, rio_call, waits_freely
from rioecho._rio.output cimport Output
from rioecho._rio.transport cimport OWN_TIMEOUT


cdef enum:
    # With bufsize=1: number of bytes to look at for the end of a frame; as many as are held, if those are more.
    LOOK_AHEAD = 1 << 10


cdef class Receiver(Output):
    cdef ssize_t recv_some(self, rio_call *call, char *data, size_t n) except -1:
        """Read 1 to n bytes into ``data``, waiting within the call's time limit. Returns their number, 0 at EOF."""
        cdef ssize_t got = 0
        cdef int err = 0
        cdef short want = POLLIN
        cdef bint ready = self.f.kind == FD_FILE
        if not self.can_read:
            raise UnsupportedOperation("this Rio is not readable: its descriptor is open for writing only")
        begin_wait(call)
        while True:
            self.turn(call)
            if self.transport is not None:
                if self.transport.waits:
                    return self.recv_waiting(call, data, n)
                got = self.recv_through(call, data, n, &want)
                err = EAGAIN
            elif fd_never_waits(&self.f):
                got = fd_read(&self.f, data, n, &err)
            elif ready:
                with nogil:
                    got = fd_read_waiting(&self.f, data, n, &err)
            else:
                got = -1   # a blocking descriptor that is not a socket is read only after poll(2) has reported data
                err = EAGAIN
            if got < 0 and would_block(err) and self.transport is None and waits_freely(self, call):
                if not self.tied_flush():
                    # If only bytes end the wait, and there is no buffered output, the read itself can block, which
                    # saves a poll(2). If O_NONBLOCK is set it fails again, and wait_for() below waits.
                    self.before_wait()
                    with nogil:
                        got = fd_read_waiting(&self.f, data, n, &err)
            if got == 0:
                self.raise_reset(call)
            if got >= 0:
                let_others_in(self)
                return got
            if would_block(err):
                if want:   # else the source has waited itself
                    self.wait_for(call, want, tied=True)
                ready = True
            elif err != EINTR:
                raise os_error(err)

    cdef ssize_t recv_waiting(self, rio_call *call, char *data, size_t n) except -1:
        """Read as ``recv_some()`` does from a source that waits itself.

        There is no wait for both directions. So while the source does not take all unsent output, it waits to read for
        short times only, and the output is tried in between.
        """
        cdef ssize_t got
        cdef int64_t patience
        cdef short want = 0, blocked
        while True:
            patience = self.patience(call)
            blocked = self.tied_flush()
            self.before_wait()
            if blocked and call.timeout != 0:
                patience = SLICE
                patience = min(patience, max(self.wait_end(call) - rio_monotonic_ns(), <int64_t>1))
            got = self.transport.recv(data, n, patience, &want)
            let_others_in(self)
            if got == 0:
                self.raise_reset(call)
            if got >= 0:
                return got
            self.poll_source(call, want, blocked != 0)
            self.turn(call)

    cdef ssize_t recv_through(self, rio_call *call, char *data, size_t n, short *want) except -2:
        """Make one attempt through the transport. It waits itself if no buffered output is kept back meanwhile."""
        cdef int64_t patience = 0
        cdef ssize_t got
        if call.timeout != 0 and call.idle < 0 and self.wake_fd < 0:   # else wait_for() waits
            if call.per_wait:
                patience = OWN_TIMEOUT
            elif call.timeout < 0:
                patience = -1
            elif call.turns == 1:   # the time has just begun
                patience = call.timeout
        if patience != 0 and self.may_owe():
            # There may be data already: then the output waits for what the caller writes next.
            got = self.transport.recv(data, n, 0, want)
            if got >= 0 or self.tied_flush():
                return got
            self.before_wait()
        PyErr_CheckSignals()
        return self.transport.recv(data, n, patience, want)

    cdef int booked(self) except -1:
        """Run pending signal handlers. The received bytes are stored, so a handler that raises loses nothing."""
        if self.transport is not None:
            self.transport.raise_late()
        PyErr_CheckSignals()
        return 0

    cdef ssize_t fill_once(self, rio_call *call, size_t need) except -1:
        """Make one read into the buffer, grown to hold at least ``need`` bytes. Returns the bytes added, 0 at EOF.

        With a buffer of one byte it reads no byte beyond ``need``.
        """
        cdef size_t n
        rio_assert(rio_flag_mine(&self.reading))
        if self.transport is not None and not takes_no_more(self):
            need = max(need, buffer_held(&self.inp) + self.transport.least_room())
        buffer_trim(&self.inp, need)
        if buffer_reserve(&self.inp, need) < 0:
            raise MemoryError
        n = buffer_room(&self.inp)
        if takes_no_more(self):
            n = min(n, need - buffer_held(&self.inp))
        elif self.brief and self.transport is None:
            self.brief = False
            n = min(n, max(need, buffer_held(&self.inp) + AHEAD) - buffer_held(&self.inp))
        return self.fill_room(call, n)

    cdef ssize_t fill_room(self, rio_call *call, size_t n) except -1:
        """Make one read of up to n bytes into the buffer, which has room for them."""
        cdef ssize_t got = self.recv_some(call, self.inp.data + self.inp.w, n)
        buffer_added(&self.inp, got)
        show_held(self)
        self.booked()
        return got

    cdef ssize_t fill_towards(self, rio_call *call, char end, size_t limit) except -1:
        """Make one read for a frame that ends in the byte ``end``. Returns the number of bytes added, 0 at EOF.

        With a buffer of one byte it reads no byte beyond the first ``end``, nor beyond ``limit`` buffered bytes: one
        byte, and from a socket those after it up to there, which it finds by peeking.
        """
        cdef size_t held = buffer_held(&self.inp)
        cdef size_t most
        cdef ssize_t got = self.fill_once(call, held + 1)
        cdef ssize_t more
        cdef char *data
        cdef const char *last
        cdef int err = 0
        if got == 0 or not takes_no_more(self) or self.f.kind != FD_SOCKET or self.transport is not None:
            return got
        held += got
        if self.inp.data[self.inp.w - 1] == end or held >= limit:
            return got
        self.check_owner()   # a signal handler may have closed it
        most = min(limit - held, max(held, <size_t>LOOK_AHEAD))
        if buffer_reserve(&self.inp, held + most) < 0:
            raise MemoryError
        data = self.inp.data + self.inp.w
        more = fd_peek(&self.f, data, most, &err)
        if more > 0:
            last = <const char *>memchr(data, end, more)
            if last != NULL:
                more = last - data + 1
            more = fd_read(&self.f, data, more, &err)
        if more < 0:
            if would_block(err) or err == EINTR:
                return got
            raise os_error(err)   # the kernel reports it only once
        buffer_added(&self.inp, more)
        show_held(self)
        return got + more

"""Sending: the system calls of a write, within the time limit of the call.

The caller of everything here holds ``writing``. The output buffer and its lock, and the sends of a read, are in
_rio/output.pyx.
"""

import io

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.buffer cimport buffer_added, buffer_consume, buffer_held, buffer_reserve, buffer_start
from rioecho._core.convert cimport os_error
from rioecho._core.fdio cimport FD_SOCKET, deadline_after, fd_has_position, fd_read, would_block
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    RIO_FREE,
    SEEK_CUR,
    lseek,
    rio_assert,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_rests,
    rio_flag_take,
    sched_yield,
    sigset_t,
)
from rioecho._rio.input cimport leave_reading, let_others_in, show_held
from rioecho._rio.limits cimport SLICE, begin_wait, rio_call
from rioecho._rio.lines cimport LineReader
from rioecho._rio.output cimport NOTHING

from rioecho.errors import ConcurrentCall


cdef enum:
    AHEAD_STEP = 1 << 16   # maximum number of bytes of one read while a write waits


cdef class Sender(LineReader):
    cdef int send(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1:
        """Make one write, and wait if it would block.

        Writes n bytes of the caller's data and adds the number of bytes sent to ``sent``. If ``data`` is NULL, writes
        buffered output instead, provided that there are more than ``keep`` bytes of it.
        """
        cdef sigset_t before
        cdef int err = 0
        cdef short want = POLLOUT
        cdef ssize_t put = 0
        cdef size_t yields = 0
        self.turn(call)
        if self.transport is not None and self.transport.waits:
            return self.send_waiting(call, data, n, keep, sent)
        while not self.lock_at_once(&before):
            self.let_holder_go_on(call, &yields)
            self.turn(call)   # the source may have been closed in the meantime
        try:
            if data != NULL:
                put = self.send_once(call, data, n, &err, &want)
                if put > 0:
                    sent[0] += put
            elif self.owes(keep):
                put = self.send_once(call, buffer_start(&self.out), buffer_held(&self.out), &err, &want)
                if put > 0:
                    buffer_consume(&self.out, put)
        finally:
            self.unlock(&before)
            let_others_in(self)
        if self.transport is not None:
            self.transport.raise_late()
        if put >= 0:
            begin_wait(call)
        elif would_block(err):
            self.wait_to_send(call, want)
        elif err != EINTR:
            raise os_error(err)
        return 0

    cdef int send_waiting(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1:
        """Make one write, as ``send()`` does, to a source that waits itself.

        ``sending`` is not held meanwhile: the reader may be another greenlet of this thread. The caller's data is
        nobody else's, and buffered output is claimed: a read then leaves it alone, and only a writer, which is this
        call, adds to it.
        """
        cdef bint buffered = data == NULL
        cdef bint reset = False
        cdef ssize_t put = -1
        cdef short want = 0
        cdef int64_t patience = self.patience(call)
        if call.ahead:   # there is no wait for both directions: it waits for short times, and is read in between
            if call.waits:
                self.take_ahead(call)
            if patience < 0 or patience > SLICE:
                patience = SLICE
        if buffered:
            self.lock(call, NULL)
            buffered = self.claimed = self.owes(keep)
            data = buffer_start(&self.out)
            n = buffer_held(&self.out)
            self.unlock(NULL)
            if not buffered:
                return 0
        try:
            put = self.transport.send(data, n, patience, &want)
        except ConnectionResetError:
            reset = True
            raise
        finally:
            if buffered or reset:
                self.unclaim(put if buffered else 0, reset)
        if put >= 0:
            if not buffered:
                sent[0] += put
            self.transport.raise_late()
            begin_wait(call)
        else:
            self.poll_source(call, want, False)
        return 0

    cdef int read_ahead(self, rio_call *call, size_t n) except -1:
        """Let a call read up to n bytes while it waits. Only of sockets, which report the end of the input again."""
        if n and self.f.kind == FD_SOCKET and self.can_read:
            if self.transport is not None and self.transport.untimed:
                raise ValueError("the source waits itself and has no settimeout(), so nothing can be read meanwhile")
            call.ahead = n
        return 0

    cdef int wait_to_send(self, rio_call *call, short want) except -1:
        """Wait for the events in ``want``, and take in what comes meanwhile as far as the call reads ahead.

        During a TLS handshake a write waits for input. A read in another thread may take that input, and even finish
        the write, and then no more may come. So such a wait is short, and the write tries again.
        """
        cdef int64_t longest = INT64_MAX if want & POLLOUT or call.timeout == 0 else deadline_after(SLICE)
        cdef bint reads
        if call.ahead == 0 or call.timeout == 0:
            return self.wait_for(call, want, False, longest)
        reads = self.take_ahead(call)
        if call.ahead == 0:
            return self.wait_for(call, want, False, longest)
        if reads:
            return self.wait_for(call, want | POLLIN, False, longest)
        return self.wait_for(call, want, tied=False, longest=deadline_after(SLICE))   # then nobody may be reading

    cdef bint take_ahead(self, rio_call *call) except -1:
        """Read what has come, up to ``call.ahead`` bytes, into the input buffer. Returns False if another call reads.

        A reader in another thread waits until it is done; see ``borrow_reading()``.
        """
        rio_flag_take(&self.lent)   # it is free: the caller holds `writing`
        try:
            if not rio_flag_take(&self.reading) and not self.resume(False):
                return False
            try:
                while call.ahead and self.receive_ahead(call) > 0:
                    pass
            finally:
                leave_reading(self)
        finally:
            rio_flag_put(&self.lent, RIO_FREE)
        return True

    cdef ssize_t receive_ahead(self, rio_call *call) except -2:
        """Make one read for ``take_ahead()``. Returns the number of bytes, or -1 if there is nothing to read now.

        At the end of the input, and if there is no memory for more, the call goes on without reading.
        """
        cdef size_t n = min(call.ahead, <size_t>AHEAD_STEP)
        cdef ssize_t got
        cdef int err = EAGAIN
        cdef short want = 0
        cdef char *data
        if buffer_reserve(&self.inp, buffer_held(&self.inp) + n) < 0:
            call.ahead = 0
            return -1
        data = self.inp.data + self.inp.w
        if self.transport is None:
            got = fd_read(&self.f, data, n, &err)
        else:
            try:
                got = self.transport.recv(data, n, 0, &want)
            except ConnectionResetError:
                self.note_reset(call)
                raise
        if got > 0:
            buffer_added(&self.inp, got)
            show_held(self)
            call.ahead -= got
            if self.transport is not None:
                self.transport.raise_late()
            return got
        if got == 0:
            call.ahead = 0
        elif not would_block(err) and err != EINTR:   # the kernel reports it only once, so the reader has to be told
            if err == ECONNRESET:
                self.note_reset(call)
            raise os_error(err)
        return -1

    cdef int note_reset(self, rio_call *call) except -1:
        """Let the next read that meets the end raise ``ConnectionResetError``."""
        self.lock(call, NULL)
        self.reset = True
        self.unlock(NULL)
        return 0

    cdef void unclaim(self, ssize_t put, bint reset) noexcept:
        """End a write of claimed output, of which ``put`` bytes were sent."""
        while not rio_flag_take(&self.sending):   # no Python code runs under it while the output is claimed
            with nogil:
                sched_yield()
        if put > 0:
            buffer_consume(&self.out, put)
        self.claimed = False
        self.reset = self.reset or reset
        self.unlock(NULL)

    cdef int send_all(self, rio_call *call, const char *data, size_t n, size_t *sent) except -1:
        """Send all n bytes of the caller's data, while ``out`` is empty. Updates ``sent`` after each write."""
        cdef bint borrows = n > 0 and fd_has_position(&self.f)
        if borrows:
            self.borrow_reading(call)
        try:
            while sent[0] < n:
                self.send(call, data + sent[0], n - sent[0], NOTHING, sent)
        finally:
            if borrows:
                self.return_reading()
        return 0

    cdef int borrow_reading(self, rio_call *call) except -1:
        """Enter the reading side, and move the file's position back to the first byte that has not been read.

        For a file that is open for both: the write goes where the caller has read to, and a later read sees what was
        written. The bytes read ahead are still in the file.
        """
        cdef size_t yields = 0, held
        rio_assert(rio_flag_mine(&self.writing))
        rio_flag_take(&self.lent)   # it is free: the caller holds `writing`
        try:
            while not rio_flag_take(&self.reading):
                if rio_flag_mine(&self.reading) or rio_flag_rests(&self.reading):
                    raise ConcurrentCall(
                        "this file has one position for both, and a call under this one, or a frame(), is reading it"
                    )
                if self.resume(False):   # in frames that nobody can leave any more
                    break
                self.let_holder_go_on(call, &yields)
        except BaseException:
            rio_flag_put(&self.lent, RIO_FREE)
            raise
        try:
            held = buffer_held(&self.inp)
            if held:
                self.check_owner()
                if self.foreign_end and self.place_read_to() + 1 < self.foreign_end:
                    raise io.UnsupportedOperation(
                        "this file has one position for both, and bytes that unread() has put back have none: read them"
                    )
                if lseek(self.f.fd, -<int64_t>held, SEEK_CUR) < 0:
                    raise os_error(errno)
                buffer_consume(&self.inp, held)
        except BaseException:
            self.return_reading()
            raise
        return 0

    cdef int64_t place_read_to(self) except? -1:
        """Return the position in a file of the first byte that has not been read, if all that is held came from it."""
        cdef int64_t place = lseek(self.f.fd, 0, SEEK_CUR)
        if place < 0:
            raise os_error(errno)
        return place - <int64_t>buffer_held(&self.inp)

    cdef int note_foreign(self) except -1:
        """Note which byte of a file that is open for both is the next one behind those put in front."""
        if fd_has_position(&self.f):
            self.check_owner()
            self.foreign_end = max(self.foreign_end if buffer_held(&self.inp) else 0, self.place_read_to() + 1)
        return 0

    cdef void return_reading(self) noexcept:
        leave_reading(self)
        rio_flag_put(&self.lent, RIO_FREE)

    cdef int push(self, rio_call *call, ssize_t keep) except -1:
        """Send buffered output until at most ``keep`` bytes are left; for NOTHING, until all is sent."""
        while self.has_unsent(call, keep):
            self.send(call, NULL, 0, keep, NULL)
        return 0

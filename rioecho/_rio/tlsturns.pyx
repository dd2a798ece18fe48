"""What the transports over TLS share: whose turn it is in OpenSSL, what is half sent, how long the socket waits.

OpenSSL's object may not be used by two threads at once. The flags ``receiving`` and ``sending`` are each held for a
whole operation and exclude each other, and all Rios over one socket share them. A caller that finds another thread in
an operation retries after poll(2), so its deadline and signal handlers work as usual. The exception is a read that
waits inside OpenSSL, for any time: a record is sent beside it while the socket has nothing to read. The reading thread
then sleeps in the kernel; the ssl module itself allows more. A connection of pyOpenSSL never waits there.
"""

from cpython.ref cimport Py_INCREF
from libc.errno cimport ECONNABORTED
from libc.stdint cimport int64_t

from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport fd_ready
from rioecho._core.flag cimport flags_link, flags_unlink
from rioecho._core.posix cimport (
    POLLIN,
    RIO_FREE,
    RIO_LOST,
    rio_assert,
    rio_bool_set,
    rio_flag,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_mutex_lock,
    rio_mutex_unlock,
    rio_size_get,
    rio_size_set,
    rio_thread_set,
    rio_time_get,
    rio_time_set,
    sched_yield,
)
from rioecho._rio.transport cimport RECORD

from rioecho.errors import ConcurrentCall


cdef class TlsTurns(Transport):
    def __cinit__(self):
        self.flags.flags[0] = &self.receiving
        self.flags.flags[1] = &self.sending
        self.flags.orphaned = RIO_LOST
        flags_link(&self.flags)

    def __dealloc__(self):
        flags_unlink(&self.flags)

    cdef void forked(self) noexcept:
        """Leak OpenSSL's object if another thread was using it: freeing it is unsafe."""
        rio_thread_set(&self.other_thread, 0)
        if self.lost():
            Py_INCREF(self.source._sslobj)

    cdef bint begin(self, bint sending) except -1:
        """Begin an operation of one direction. Returns False if another thread's operation is in the way.

        Raises ``ConcurrentCall`` if this call interrupted an operation of this thread, and ``ConnectionAbortedError``
        if the socket is lost. No byte is lost: they are in ``begun`` and in the caller's buffer.
        """
        cdef rio_flag *flag = &self.sending if sending else &self.receiving
        cdef bint begun
        rio_mutex_lock(&self.gate)
        begun = rio_flag_take(flag)
        if begun and self.blocked_by_other(sending):
            rio_flag_put(flag, RIO_FREE)
            begun = False
        rio_mutex_unlock(&self.gate)
        if begun:
            return True
        if rio_flag_mine(flag) or (rio_flag_mine(&self.sending if not sending else &self.receiving)):
            raise ConcurrentCall("a TLS call of this thread is in progress; a signal handler cannot join it")
        if self.lost():
            raise ConnectionAbortedError(
                ECONNABORTED,
                "another thread was inside this TLS connection when the process was forked: "
                "it cannot be used in the child",
            )
        return False

    cdef bint blocked_by_other(self, bint sending) noexcept:
        """Report whether an operation of the other direction excludes this one.

        A read that waits for the peer inside OpenSSL does not: a record may be sent beside it, by the signal handler
        that interrupted it or, while the socket has nothing to read, by another thread.
        """
        if not sending:
            return rio_flag_state(&self.sending) != RIO_FREE
        if rio_flag_state(&self.receiving) == RIO_FREE:
            return False
        if not self.waiting or self.lost():
            return True
        return not rio_flag_mine(&self.receiving) and fd_ready(self.fd, POLLIN)

    cdef void end(self, bint sending) noexcept:
        rio_flag_put(&self.sending if sending else &self.receiving, RIO_FREE)

    cdef void wait_begins(self) noexcept:
        """Let senders in: this read is about to wait inside OpenSSL."""
        rio_mutex_lock(&self.gate)
        self.waiting = True
        rio_mutex_unlock(&self.gate)

    cdef void wait_ends(self) noexcept:
        """Keep further senders out, and wait for one that is in: it does not block."""
        if not self.waiting:
            return
        rio_mutex_lock(&self.gate)
        self.waiting = False
        rio_mutex_unlock(&self.gate)
        while rio_flag_state(&self.sending) > RIO_LOST:
            with nogil:
                sched_yield()

    cdef bint lost(self) noexcept:
        """Report whether another thread was in an operation when this process was forked."""
        return rio_flag_state(&self.receiving) == RIO_LOST or rio_flag_state(&self.sending) == RIO_LOST

    cdef bint stands_in_way(self) noexcept:
        return rio_flag_mine(&self.receiving) or rio_flag_mine(&self.sending)

    cdef size_t least_room(self) noexcept:
        return RECORD   # what does not fit stays in OpenSSL, where select() does not report it

    cdef void set_begun(self, bytes record) noexcept:
        """Store the record that OpenSSL must be given again; None for none."""
        rio_assert(rio_flag_mine(&self.sending))
        self.begun = record
        rio_bool_set(&self.half_sent, record is not None)

    # ---- the socket's own timeout

    cdef object timeout(self):
        """Return the socket's own timeout, even while an operation has set it to 0."""
        cdef size_t before = rio_size_get(&self.mutes)
        cdef int64_t ns
        if before % 2 == 0:
            timeout = self.sock.gettimeout()
            if rio_size_get(&self.mutes) == before:
                return timeout
        ns = rio_time_get(&self.own_timeout)
        return None if ns < 0 else ns / 1e9

    cdef object mute(self):
        """Set the socket's timeout to 0, so that its calls do not wait. Returns what ``restore()`` needs."""
        timeout = self.sock.gettimeout()
        if timeout == 0:
            return None
        rio_time_set(&self.own_timeout, to_nanoseconds(timeout))
        rio_size_set(&self.mutes, self.mutes + 1)
        try:
            self.sock.settimeout(0)
        except BaseException:
            rio_size_set(&self.mutes, self.mutes + 1)
            raise
        return (timeout,)

    cdef void restore(self, object muted) noexcept:
        """Restore the socket's timeout. An exception of that is stored: the bytes of the call are not counted yet."""
        if muted is None:
            return
        try:
            self.sock.settimeout(muted[0])
        except OSError:
            pass   # another thread has closed the socket; the bytes that were read are still delivered
        except BaseException as error:
            self.keep(error)
        rio_size_set(&self.mutes, self.mutes + 1)

"""A connection between accept(2) and its engine, which has exactly one owner at any time.

The object is created before the connection is accepted and closes it when it is deallocated, so no exception leaks a
descriptor. An engine takes ownership in C, in the same step after which it can no longer fail, or else the acceptor
keeps it: ownership never depends on the order of statements.
"""

cimport cython
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EPROTO, errno
from libc.stdint cimport uint64_t

from rioecho._core.convert cimport os_error
from rioecho._core.counts cimport Counts
from rioecho._core.posix cimport (
    RIO_FREE,
    close,
    rio_accept,
    rio_adopt,
    rio_atomic_add,
    rio_atomic_load,
    rio_source,
    rio_source_address,
    rio_source_of,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_listen_queue,
    rio_peer_name,
    sockaddr_storage,
)
from rioecho._server.hosts cimport CLAIM_NO_MEMORY, CLAIM_REFUSED, HostTable, hosts_claim, hosts_release
from rioecho._server.notify cimport WakePipe


@cython.final
cdef class AcceptCounts:
    """The numbers of connections taken by engines and of connections closed unserved."""

    @property
    def accepted(self):
        """The number of connections that an engine has taken."""
        return rio_atomic_load(&self.n_accepted)

    @property
    def refused(self):
        """The number of connections closed unserved."""
        return rio_atomic_load(&self.n_refused)

    def active(self, tuple counts not None):
        """Return the number of accepted connections minus the ``closed`` of all ``counts``."""
        cdef Counts each
        cdef uint64_t closed = 0
        for each in counts:
            closed += rio_atomic_load(&each.c.closed)
        return rio_atomic_load(&self.n_accepted) - closed   # loaded last, so that the difference is never negative


@cython.final
@cython.no_gc   # it refers to nothing that could refer to it; and __dealloc__ uses what a collection would take before
cdef class Accepted:
    """An accepted connection. The acceptor owns it until an engine takes it; deallocation closes it."""

    def __cinit__(self, AcceptCounts tally not None):
        self.fd = -1
        self.begun = True
        self.tally = tally

    def __dealloc__(self):
        if self.begun and self.fd >= 0:
            self.finish(True)

    cdef bint take(self) noexcept:
        """Transfer the connection to an engine and count it as accepted; return False if it was taken before."""
        if not rio_flag_take(&self.owner):
            return False
        rio_atomic_add(&self.tally.n_accepted, 1)
        return True

    cdef void put_back(self) noexcept:
        """Return the connection to the acceptor."""
        self.counts = None
        self.closings = None
        rio_atomic_add(&self.tally.n_accepted, <uint64_t>-1)
        rio_flag_put(&self.owner, RIO_FREE)

    cdef int detach(self) noexcept:
        """Release the descriptor of a taken connection to the engine, which closes it and counts that."""
        cdef int fd = self.fd
        self.fd = -1
        return fd

    cdef host_t *detach_host(self) noexcept:
        """Transfer the claim of the connection's address, which may be NULL, to the engine."""
        cdef host_t *host = self.host
        self.host = NULL
        return host

    cdef void finish(self, bint failed) noexcept:
        close(self.fd)   # before the count, so that a caller that sees the count finds the descriptor free
        self.fd = -1
        if self.host != NULL:
            hosts_release(&self.hosts.h, self.detach_host())
        if rio_flag_state(&self.owner) == RIO_FREE:
            rio_atomic_add(&self.tally.n_refused, 1)
        elif self.counts is not None:
            if failed:
                rio_atomic_add(&self.counts.c.errors, 1)
            rio_atomic_add(&self.counts.c.closed, 1)
            self.closings.notify()

    @property
    def is_taken(self):
        """Whether an engine has taken the connection."""
        return rio_flag_state(&self.owner) != RIO_FREE

    @property
    def peer(self):
        """The peer's name for the log: ``(host, port)``, ``(unix socket)``, or ``(unknown)`` if it is lost."""
        cdef char text[96]
        rio_peer_name(&self.address, text, sizeof(text))
        return text.decode("ascii", "replace")

    def fileno(self):
        """Return the descriptor, or -1 if it was closed or detached."""
        return self.fd

    def admit(self, HostTable hosts not None):
        """Count the connection for its address; report whether it is within the limit. A second call counts no more.

        Raises ``MemoryError``.
        """
        cdef rio_source source
        if self.hosts is not None:
            return True
        rio_source_of(&self.address, &source)
        answer = hosts_claim(&hosts.h, &source, &self.host)
        if answer == CLAIM_NO_MEMORY:
            raise MemoryError
        if answer == CLAIM_REFUSED:
            return False
        self.hosts = hosts
        return True

    def name_source(self, bytes source):
        """Replace the peer's address by that of a PROXY header; None is a header without one."""
        if source is not None:
            rio_source_address(<const rio_source *><const char *>source, &self.address)

    def lend(self, start, Counts counts not None, WakePipe closings not None):
        """Take the connection and call ``start()``, which hands it to a thread that will ``close()`` it.

        The close is counted in ``counts`` and reported to ``closings``. If ``start()`` raises, the connection is
        returned to the acceptor and the error is passed on. Raises ``ValueError`` if it was taken before.
        """
        if not self.take():
            raise ValueError("this connection has been taken already")
        self.counts = counts
        self.closings = closings
        try:
            start()
        except BaseException:
            self.put_back()
            raise

    def close(self, *, bint failed=False):
        """Close the connection and count it, as an error if ``failed``. Closing again does nothing."""
        if self.fd >= 0:
            self.finish(failed)


def source_name(bytes source not None):
    """Return the name of a source, as ``Accepted.peer`` is."""
    cdef sockaddr_storage address
    cdef char text[96]
    rio_source_address(<const rio_source *><const char *>source, &address)
    rio_peer_name(&address, text, sizeof(text))
    return text.decode("ascii", "replace")


def accept(int listener, AcceptCounts tally not None):
    """Accept a connection from a non-blocking listening socket (accept(2)).

    Returns None if the listen queue is empty, or if the client disconnected while waiting in it. Raises ``OSError``.
    """
    cdef int err
    accepted = Accepted(tally)
    accepted.fd = rio_accept(listener, &accepted.address)
    err = errno
    if accepted.fd >= 0:
        return accepted
    if err in (EAGAIN, EINTR, ECONNABORTED, EPROTO):
        return None
    raise os_error(err)


def adopt(sock, AcceptCounts tally not None):
    """Return the connection of a connected socket object, which is detached."""
    accepted = Accepted(tally)
    accepted.fd = sock.detach()
    rio_adopt(accepted.fd, &accepted.address)
    return accepted


def queue_length(int listener):
    """Return the number of connections in the listen queue of a socket, or None if the system does not report it."""
    cdef int n = rio_listen_queue(listener)
    return None if n < 0 else n

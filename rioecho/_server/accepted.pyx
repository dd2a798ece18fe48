"""A connection on its way from accept(2) to its engine, which has one owner at every moment.

The object is made before the connection is accepted, and closes it when nobody has it any more: no exception, wherever
it is raised, leaks a descriptor. An engine takes the connection, in C and in the same step in which it can no longer
fail, or leaves it with the acceptor: nobody has to find out from the order of statements who has it.
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
    rio_atomic_add,
    rio_atomic_load,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_listen_queue,
    rio_peer_name,
)
from rioecho._server.notify cimport WakePipe


@cython.final
cdef class AcceptCounts:
    """How many connections engines have taken, and how many were closed unserved."""

    @property
    def accepted(self):
        """Connections that an engine has taken."""
        return rio_atomic_load(&self.n_accepted)

    @property
    def refused(self):
        """Connections that were closed unserved."""
        return rio_atomic_load(&self.n_refused)

    def active(self, tuple counts not None):
        """Return how many of those accepted are not among the ``closed`` of ``counts``."""
        cdef Counts each
        cdef uint64_t closed = 0
        for each in counts:
            closed += rio_atomic_load(&each.c.closed)
        return rio_atomic_load(&self.n_accepted) - closed   # in this order, for no connection is closed before


@cython.final
cdef class Accepted:
    """An accepted connection. The acceptor has it until an engine takes it; it is closed when the object goes."""

    def __cinit__(self, AcceptCounts tally not None):
        self.fd = -1
        self.tally = tally

    def __dealloc__(self):
        if self.fd >= 0:
            self.finish(True)

    cdef bint take(self) noexcept:
        """Make it an engine's and count it as accepted; False where it has been taken already."""
        if not rio_flag_take(&self.owner):
            return False
        rio_atomic_add(&self.tally.n_accepted, 1)
        return True

    cdef void put_back(self) noexcept:
        """Make it the acceptor's again."""
        self.counts = None
        self.closings = None
        rio_atomic_add(&self.tally.n_accepted, <uint64_t>-1)
        rio_flag_put(&self.owner, RIO_FREE)

    cdef int detach(self) noexcept:
        """Give the descriptor of one that was taken to the engine, which closes it and counts its end."""
        cdef int fd = self.fd
        self.fd = -1
        return fd

    cdef void finish(self, bint failed) noexcept:
        close(self.fd)   # before it is counted: whoever sees it counted may rely on the descriptor being free
        self.fd = -1
        if rio_flag_state(&self.owner) == RIO_FREE:
            rio_atomic_add(&self.tally.n_refused, 1)
        elif self.counts is not None:
            if failed:
                rio_atomic_add(&self.counts.c.errors, 1)
            rio_atomic_add(&self.counts.c.closed, 1)
            self.closings.notify()

    @property
    def is_taken(self):
        """Report whether an engine has it."""
        return rio_flag_state(&self.owner) != RIO_FREE

    @property
    def peer(self):
        """The peer's name for the log: ``(host, port)``, numeric, or ``(unix socket)``."""
        cdef char text[96]
        rio_peer_name(&self.address, text, sizeof(text))
        return text.decode("ascii", "replace")

    def fileno(self):
        """Return the descriptor, or -1."""
        return self.fd

    def lend(self, start, Counts counts not None, WakePipe closings not None):
        """Take it and call start(), which hands it to a thread that will close() it.

        Its end is counted in counts, and closings is notified. What start() raises leaves here, and the acceptor has
        the connection again.
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
        """Close it and count that; again: does nothing. failed: it ended in an error."""
        if self.fd >= 0:
            self.finish(failed)


def accept(int listener, AcceptCounts tally not None):
    """Accept a connection from a listening socket that does not block.

    None where there is none, or where a client has gone meanwhile (accept(2)). Raises OSError.
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


def queue_length(int listener):
    """Return how many connections are in the listen queue of a socket; None where the system does not tell."""
    cdef int n = rio_listen_queue(listener)
    return None if n < 0 else n

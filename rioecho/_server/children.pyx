"""The child processes of the process engine (CS:APP 12.1): the fork, the list, and waiting for them.

The child runs only C from fork() to _exit(), so it cannot block on a lock that another thread of the parent held, those
of the interpreter included (childside.pxd). It keeps three descriptors: its connection, the pipe that signals the stop
(which is also at EOF when the parent has died), and the pipe on which it reports; and a fourth where the parent has to
permit the address in its PROXY header. It adds its counts to shared memory.

In the parent the fork is the last step that can fail. The ownership of the connection, the child's process ID and its
place in the list change in C together with it, so no child is unknown to the parent and no connection is served twice.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.errno cimport EINTR, errno
from libc.stdint cimport SIZE_MAX
from libc.string cimport memset

from rioecho._core.budget cimport Share
from rioecho._core.buffer cimport buffer_init
from rioecho._core.convert cimport os_error, to_nanoseconds, to_size
from rioecho._core.counts cimport Counts
from rioecho._core.posix cimport (
    POLLIN,
    SIGKILL,
    close,
    fork,
    kill,
    poll,
    pollfd,
    rio_atomic_add,
    rio_signals_hold,
    rio_signals_release,
    rio_source_of,
    rio_wait_ns,
    sigset_t,
)
from rioecho._server.accepted cimport Accepted
from rioecho._server.blockingloop cimport echo_t
from rioecho._server.child cimport Child
from rioecho._server.childside cimport OUTCOME_FAILED, OUTCOME_NO_HEADER, OUTCOME_REFUSED, child_main
from rioecho._server.echo cimport CHUNK
from rioecho._server.notify cimport WakePipe
from rioecho._server.proxy cimport proxy_t


cdef enum:
    LOOK = 10_000_000   # nanoseconds between two looks at the children where they cannot be waited for


@cython.final
@cython.no_gc_clear   # a child stays in the list until it has been waited for
cdef class Children:
    """The children that have not been waited for. Only one thread may call ``next()`` and ``reap()``."""

    cdef Child first
    cdef WakePipe pipe
    cdef pollfd *fds       # of the last poll(2); the first is that of the pipe
    cdef size_t cap
    cdef size_t n          # number of fds in use
    cdef size_t checked    # number of fds that next() has checked

    def __cinit__(self):
        self.pipe = WakePipe()

    def __dealloc__(self):
        PyMem_RawFree(self.fds)

    def close(self):
        """Close the pipe."""
        self.pipe.close()

    def wake(self):
        """Make ``next()`` return."""
        self.pipe.notify()

    @property
    def any(self):
        """Whether there is a child."""
        return self.first is not None

    def fork(
        self,
        Child child not None,
        Accepted connection not None,
        framing,
        *,
        timeout,
        max_line,
        int stop_fd,
        drain_timeout,
        bint tell_lines,
        bint proxied,
        Counts counts not None,
        Share memory not None,
    ):
        """Fork a child that takes the connection and echoes it as ``Echo`` does, adding to ``counts``.

        The child reports its end, and each line if ``tell_lines``, and exits with status 0. Its buffer is taken from
        the share ``memory``, which ``child`` keeps. Raises ``OSError`` if the system has no process left; the
        connection is not taken then.
        """
        cdef echo_t e
        cdef proxy_t header
        cdef sigset_t before
        cdef int pid, err
        memset(&e, 0, sizeof(e))
        memset(&header, 0, sizeof(header))
        e.opening = True
        if proxied:
            e.header = &header
        buffer_init(&e.b, CHUNK)
        e.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
        e.by_line = tell_lines
        e.timeout = to_nanoseconds(timeout)
        e.drain = to_nanoseconds(drain_timeout)
        e.stop_fd = stop_fd
        e.totals = counts.c
        e.memory = memory.s
        child.memory = memory
        rio_source_of(&connection.address, &child.own)
        if not connection.take():
            raise ValueError("this connection has been taken already")
        with cython.critical_section(self):
            # The GIL is held, because allocator hooks may need it; signals are blocked, so that no handler of the
            # parent runs in the child.
            rio_signals_hold(&before)
            pid = fork()
            if pid == 0:
                child_main(&e, connection.fd, child.report_fd, child.verdict[0])
            err = errno
            rio_signals_release(&before)
            if pid > 0:
                child.pid = pid
                child.hosts = connection.hosts   # before another thread can reap it
                child.host = connection.detach_host()
                child.next = self.first
                self.first = child
        if pid < 0:
            connection.put_back()
            raise os_error(err)
        close(connection.detach())
        close(child.report_fd)   # otherwise the pipe would never be at EOF
        child.report_fd = -1
        self.pipe.notify()

    def next(self):
        """Return a child that has a report or has ended; if there is none, wait for one or for ``wake()``.

        After the wait it returns None, and is to be called again. Raises ``MemoryError`` if there is no memory for
        poll(2).
        """
        cdef Child child
        cdef int fd = -1
        while self.checked < self.n:
            if self.fds[self.checked].revents:
                fd = self.fds[self.checked].fd
            self.checked += 1
            if fd >= 0:
                break
        if fd < 0:
            self.wait_for_all()
            return None
        with cython.critical_section(self):
            child = self.first
            while child is not None and child.fd != fd:
                child = child.next
        return child

    cdef int wait_for_all(self) except -1:
        """Wait until a child is readable or ``wake()`` is called."""
        cdef Child child
        cdef pollfd *grown
        cdef size_t i, n = 1
        self.n = self.checked = 0
        with cython.critical_section(self):
            child = self.first
            while child is not None:
                n += 1
                child = child.next
            if n > self.cap:
                grown = <pollfd *>PyMem_RawRealloc(self.fds, 2 * n * sizeof(pollfd))
                if grown != NULL:
                    self.fds = grown
                    self.cap = 2 * n
            if n <= self.cap:
                n = 1
                child = self.first
                while child is not None:
                    self.fds[n].fd, self.fds[n].events, self.fds[n].revents = child.fd, POLLIN, 0
                    n += 1
                    child = child.next
        if n > self.cap:
            raise MemoryError
        self.fds[0].fd, self.fds[0].events, self.fds[0].revents = self.pipe.fd, POLLIN, 0
        with nogil:
            if poll(self.fds, <unsigned int>n, -1) > 0:
                self.n = n
            elif errno != EINTR:   # no memory, or a limit of descriptors that is lower than their number: look at each
                rio_wait_ns(-1, LOOK)
                for i in range(n):
                    self.fds[i].revents = POLLIN
                self.n = n
        if self.n and self.fds[0].revents:
            self.pipe.clear()
        self.checked = 1
        return 0

    def reap(self, Child child not None, Counts counts not None, WakePipe closings not None):
        """Wait for a child that has exited or is about to; count the closed connection and notify ``closings``."""
        self.remove(child)   # before the wait, after which its process ID may belong to an unrelated process
        child.wait()
        child.memory = None   # before the count: the memory of a killed child is free again
        if not child.reported_end or child.last.outcome in (OUTCOME_FAILED, OUTCOME_NO_HEADER):
            rio_atomic_add(&counts.c.errors, 1)
        elif child.last.outcome == OUTCOME_REFUSED:
            rio_atomic_add(&counts.c.refused, 1)
        rio_atomic_add(&counts.c.closed, 1)
        closings.notify()

    cdef void remove(self, Child child) noexcept:
        cdef Child other
        with cython.critical_section(self):
            if self.first is child:
                self.first = child.next
            else:
                other = self.first
                while other is not None and other.next is not child:
                    other = other.next
                if other is not None:
                    other.next = child.next
            child.next = None

    def some(self):
        """Return any child, or None."""
        return self.first

    def kill(self):
        """Kill all children. May be called from a signal handler."""
        cdef Child child
        with cython.critical_section(self):
            child = self.first
            while child is not None:
                kill(child.pid, SIGKILL)
                child = child.next

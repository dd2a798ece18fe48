"""A child process of the process engine as its parent sees it: its reports, and how it ended.

The other side, in the child, is childside.pxd; the list of all children is children.pyx.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EINTR, errno

from rioecho._core.convert cimport os_error
from rioecho._core.fdio cimport would_block
from rioecho._core.posix cimport (
    RIO_SOURCE_UNKNOWN,
    WIFSIGNALED,
    WTERMSIG,
    close,
    read,
    rio_pipe,
    rio_source,
    waitpid,
    write,
)
from rioecho._server.childside cimport (
    OUTCOME_FAILED,
    OUTCOME_LINE,
    OUTCOME_NO_HEADER,
    OUTCOME_OPENED,
    OUTCOME_REFUSED,
    OUTCOME_TIMED_OUT,
    OUTCOME_UNUSED,
    report_t,
)
from rioecho._server.hosts cimport CLAIM_GRANTED, HostTable, claim, hosts_claim, hosts_release

from rioecho._server.accepted import source_name

# Results of Child.read_line() other than a length.
END = -1
NOTHING = -2
OPENED_NOW = -3


@cython.final
cdef class Child:
    """A child process, from before its fork: its reports, and how it ended.

    With ``asks`` it waits until ``opened()`` answers it, when it has read the PROXY header.
    """

    def __cinit__(self, str peer, *, bint asks=False):
        cdef int ends[2]
        self.fd = self.report_fd = self.verdict[0] = self.verdict[1] = -1
        self.begun = True
        self.peer = peer
        if asks and rio_pipe(self.verdict) < 0:
            raise os_error(errno)
        if rio_pipe(ends) < 0:
            raise os_error(errno)
        self.fd, self.report_fd = ends[0], ends[1]

    def __dealloc__(self):
        if self.begun:
            self.close_pipe()

    cdef void close_pipe(self) noexcept:
        cdef int i
        if self.fd >= 0:
            close(self.fd)
        if self.report_fd >= 0:
            close(self.report_fd)
        for i in range(2):
            if self.verdict[i] >= 0:
                close(self.verdict[i])
            self.verdict[i] = -1
        self.fd = self.report_fd = -1
        if self.host != NULL:
            hosts_release(&self.hosts.h, self.host)
            self.host = NULL

    def read_line(self):
        """Read a report without blocking.

        Returns the length of a line that the child has received, OPENED_NOW if it has read the PROXY header or its
        first bytes (then call ``opened()``), END if the child has ended, or NOTHING if there is no report.
        """
        cdef report_t r
        cdef ssize_t n = read(self.fd, &r, sizeof(r))   # never a part of one: each was sent in one write
        cdef int err = errno
        if n < 0:
            return NOTHING if err == EINTR or would_block(err) else END
        if n < <ssize_t>sizeof(r):
            return END
        if r.outcome == OUTCOME_LINE:
            return r.bytes
        if r.outcome == OUTCOME_OPENED:
            self.last = r
            return OPENED_NOW
        # The child's last report. EOF may not follow: another process, forked elsewhere in the program at that time,
        # may hold the pipe too.
        self.last = r
        self.reported_end = True
        return END

    cdef void wait(self) noexcept:
        """Wait for the process, which has exited or is about to, and close the pipe."""
        cdef int status = 0, waited = 0
        with nogil:
            while waited <= 0:
                waited = waitpid(self.pid, &status, 0)
                if waited < 0 and errno != EINTR:   # other code of this process waits for all of its children
                    status = 0
                    break
        self.status = status
        self.close_pipe()

    def opened(self, HostTable hosts):
        """Take the address of the PROXY header, count the connection for it in ``hosts``, and answer the child.

        Returns whether the child has read bytes to be echoed.
        """
        cdef claim granted
        cdef char verdict
        cdef rio_source source = self.own
        if self.last.source.kind != RIO_SOURCE_UNKNOWN:
            source = self.last.source
            self.peer = source_name(PyBytes_FromStringAndSize(<const char *>&self.last.source, sizeof(rio_source)))
        if self.verdict[1] >= 0 and not self.is_answered:
            granted = CLAIM_GRANTED
            if hosts is not None and self.host == NULL:
                granted = hosts_claim(&hosts.h, &source, &self.host)
                self.hosts = hosts
            verdict = c'y' if granted == CLAIM_GRANTED else c'n'
            self.is_answered = True
            write(self.verdict[1], &verdict, 1)   # the pipe is empty
        return self.last.first != 0

    @property
    def is_unused(self):
        """Whether the connection ended before its first byte: a load balancer's check."""
        return self.reported_end and self.last.outcome == OUTCOME_UNUSED

    @property
    def echoed(self):
        """The number of bytes echoed, as in the child's last report."""
        return self.last.bytes

    @property
    def reason(self):
        """The reason why the connection was closed, for the log."""
        if not self.reported_end:
            if WIFSIGNALED(self.status):
                return f"its process was killed by signal {WTERMSIG(self.status)}"
            return "its process exited"
        if self.last.outcome == OUTCOME_FAILED:
            return os.strerror(self.last.err)
        if self.last.outcome == OUTCOME_NO_HEADER:
            return "no valid PROXY header"
        if self.last.outcome == OUTCOME_REFUSED:
            return "too many connections from its address"
        if self.last.outcome == OUTCOME_UNUSED:
            return os.strerror(self.last.err) if self.last.err else "end of input"
        if self.last.outcome == OUTCOME_TIMED_OUT:
            return "drain timeout" if self.last.draining else "idle timeout"
        return "server stopped" if self.last.draining else "end of input"

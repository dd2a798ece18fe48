"""The echo of one connection in a child process (CS:APP 12.1).

The child runs C alone, from fork() to _exit(): no lock of the parent's, Python's own included, can be found taken by a
thread that the child does not have. It keeps three descriptors: its connection, the pipe that says when to stop (whose
end it sees too when the parent has died), and the pipe on which it reports. The numbers it adds to shared memory.
"""

from libc.errno cimport errno
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memset

from rioecho._core.budget cimport Share
from rioecho._core.buffer cimport buffer_init
from rioecho._core.convert cimport os_error, to_nanoseconds, to_size
from rioecho._core.counts cimport Counts
from rioecho._server.blocking cimport DONE, FAILED, GOT_LINE, INTERRUPTED, answer, echo_t, echo_turn
from rioecho._server.echo cimport CHUNK, ECHOING
from rioecho._core.fdio cimport deadline_after, fd_open, fd_wait
from rioecho._core.posix cimport (
    POLLOUT,
    _exit,
    close,
    fork,
    rio_child_signals,
    rio_close_all_but,
    rio_signals_hold,
    rio_signals_release,
    sigset_t,
    write,
)

from enum import IntEnum


cdef enum outcome:
    # How the echo ended, and what a report begins with.
    OUTCOME_LINE        # not at all: a line is about to go back
    OUTCOME_ENDED
    OUTCOME_TIMED_OUT
    OUTCOME_FAILED


class Outcome(IntEnum):
    """How the echo ended, or LINE: it has not, a line is about to go back."""

    LINE = OUTCOME_LINE
    ENDED = OUTCOME_ENDED
    TIMED_OUT = OUTCOME_TIMED_OUT
    FAILED = OUTCOME_FAILED


cdef struct report_t:
    # Four of the machine's 64-bit numbers, in its own byte order: see REPORT.
    uint64_t outcome
    uint64_t draining
    uint64_t err
    uint64_t bytes   # of the line; or echoed in all


# How the parent reads a report: outcome, draining, errno, bytes (struct).
REPORT = "=4Q"


cdef void report(int fd, uint64_t outcome, const echo_t *e, uint64_t n) noexcept nogil:
    """Write a report; one about a line is dropped where the pipe is full, for no log may stop an echo."""
    cdef report_t r
    cdef int ignored
    r.outcome = outcome
    r.draining = e.phase != ECHOING
    r.err = e.err if outcome == OUTCOME_FAILED else 0
    r.bytes = n
    if outcome != OUTCOME_LINE:
        fd_wait(fd, POLLOUT, deadline_after(5_000_000_000), &ignored)
    write(fd, &r, sizeof(r))


cdef void live(echo_t *e, int fd, int report_fd) noexcept nogil:
    """The child, from its first instruction to its last."""
    cdef int keep[3]
    cdef int i, j, other
    cdef answer what = INTERRUPTED
    rio_child_signals()
    keep[0], keep[1], keep[2] = fd, e.stop_fd, report_fd
    for i in range(2):
        for j in range(2 - i):
            if keep[j] > keep[j + 1]:
                other = keep[j]
                keep[j] = keep[j + 1]
                keep[j + 1] = other
    rio_close_all_but(keep, 3)
    e.err = fd_open(&e.f, fd)
    if e.err:
        what = FAILED
    while what == INTERRUPTED or what == GOT_LINE:
        what = echo_turn(e)
        if what == GOT_LINE:
            report(report_fd, OUTCOME_LINE, e, e.ready)
    close(fd)
    report(
        report_fd,
        OUTCOME_ENDED if what == DONE else OUTCOME_FAILED if what == FAILED else OUTCOME_TIMED_OUT,
        e,
        e.bytes_out,
    )
    _exit(0)


def fork_echo(
    int fd,
    framing,
    *,
    timeout,
    max_line,
    int stop_fd,
    drain_timeout,
    bint tell_lines,
    int report_fd,
    Counts counts not None,
    Share memory not None,
):
    """Fork a child that echoes a connected socket as Echo does, adding to counts; returns its process id.

    The parent keeps `memory`, the share that the child's buffer is taken from, and drops it when the child has ended.

    It writes to report_fd, which must not block, a report (see REPORT) of each line if tell_lines and one of its end,
    and exits with status 0. fd and report_fd stay open in the parent, who closes them and waits for the child. Raises
    OSError when no process can be had.
    """
    cdef echo_t e
    cdef sigset_t before
    cdef int pid, err
    memset(&e, 0, sizeof(e))
    buffer_init(&e.b, CHUNK)
    e.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
    e.by_line = tell_lines
    e.timeout = to_nanoseconds(timeout)
    e.drain = to_nanoseconds(drain_timeout)
    e.stop_fd = stop_fd
    e.totals = counts.c
    e.memory = memory.s
    # With the GIL, whose holder's allocator hooks may want it; and without signals, so that no handler of the
    # parent's runs in the child.
    rio_signals_hold(&before)
    pid = fork()
    if pid == 0:
        live(&e, fd, report_fd)
    err = errno
    rio_signals_release(&before)
    if pid < 0:
        raise os_error(err)
    return pid

# The side of the child process of the process engine: from fork() to _exit() it runs only this C code; see
# _server/children.pyx.

from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, uint64_t
from libc.string cimport memset

from rioecho._core.fdio cimport deadline_after, fd_open, fd_wait, would_block
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    _exit,
    close,
    read,
    rio_child_signals,
    rio_close_all_but,
    rio_source,
    write,
)
from rioecho._server.blockingloop cimport (
    DONE,
    FAILED,
    GOT_LINE,
    INTERRUPTED,
    NO_HEADER,
    OPENED,
    answer,
    echo_is_unused,
    echo_t,
    echo_turn,
)
from rioecho._server.echo cimport ECHOING


cdef enum outcome:
    # How the echo ended; the first field of a report.
    OUTCOME_LINE        # it has not ended: a line is about to be sent
    OUTCOME_OPENED      # nor here: the PROXY header or the first bytes were read
    OUTCOME_NO_HEADER
    OUTCOME_REFUSED
    OUTCOME_UNUSED
    OUTCOME_ENDED
    OUTCOME_TIMED_OUT
    OUTCOME_FAILED


cdef struct report_t:
    # A report, which a child sends in one write.
    uint64_t outcome
    uint64_t draining
    uint64_t err
    uint64_t first       # OUTCOME_OPENED: whether there are bytes to be echoed
    rio_source source    # OUTCOME_OPENED: the address in the PROXY header
    uint64_t bytes   # length of the line, or number of bytes echoed in all


cdef inline void report(int fd, uint64_t outcome, const echo_t *e, uint64_t n, bint failed=False) noexcept nogil:
    """Write a report. The report of a line is dropped if the pipe is full, so that a log never blocks an echo."""
    cdef report_t r
    cdef int ignored
    memset(&r, 0, sizeof(r))
    r.outcome = outcome
    r.first = not e.opening
    if e.header != NULL:
        r.source = e.header.source
    r.draining = e.phase != ECHOING
    r.err = e.err if outcome == OUTCOME_FAILED or failed else 0
    r.bytes = n
    if outcome != OUTCOME_LINE:
        fd_wait(fd, POLLOUT, deadline_after(5_000_000_000), &ignored)
    write(fd, &r, sizeof(r))


cdef inline bint is_permitted(int verdict_fd) noexcept nogil:
    """Wait for the parent's answer to the address in the PROXY header; report whether it permits the connection."""
    cdef char verdict = 0
    cdef int ignored
    while read(verdict_fd, &verdict, 1) < 0 and (errno == EINTR or would_block(errno)):
        fd_wait(verdict_fd, POLLIN, INT64_MAX, &ignored)
    return verdict == c'y'   # EOF: the parent has died


cdef inline void child_main(echo_t *e, int fd, int report_fd, int verdict_fd) noexcept nogil:
    """Run the child, from fork() to _exit()."""
    cdef int keep[4]
    cdef int i, j, other
    cdef int n = 3 if verdict_fd < 0 else 4
    cdef answer what = INTERRUPTED
    cdef bint is_asked = False, is_refused = False
    cdef outcome how
    rio_child_signals()
    keep[0], keep[1], keep[2], keep[3] = fd, e.stop_fd, report_fd, verdict_fd
    for i in range(n - 1):
        for j in range(n - 1 - i):
            if keep[j] > keep[j + 1]:
                other = keep[j]
                keep[j] = keep[j + 1]
                keep[j + 1] = other
    rio_close_all_but(keep, n)
    e.err = fd_open(&e.f, fd)
    if e.err:
        what = FAILED
    while (what == INTERRUPTED or what == GOT_LINE or what == OPENED) and not is_refused:
        what = echo_turn(e)
        if what == GOT_LINE:
            report(report_fd, OUTCOME_LINE, e, e.ready)
        elif what == OPENED:
            report(report_fd, OUTCOME_OPENED, e, 0)
            if verdict_fd >= 0 and not is_asked:
                is_asked = True
                is_refused = not is_permitted(verdict_fd)
    close(fd)
    if is_refused:
        how = OUTCOME_REFUSED
    elif what == NO_HEADER:
        how = OUTCOME_NO_HEADER
    elif echo_is_unused(e, what):
        how = OUTCOME_UNUSED
    elif what == DONE:
        how = OUTCOME_ENDED
    elif what == FAILED:
        how = OUTCOME_FAILED
    else:
        how = OUTCOME_TIMED_OUT
    report(report_fd, how, e, e.bytes_out, what == FAILED)
    _exit(0)

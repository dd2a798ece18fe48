# One read, one write, one wait on a descriptor. No buffer, no Python object, no loop.
#
# Each function makes one attempt and answers like the system call: a count, or -1 with the errno stored at once in
# `err`. EINTR is an answer too: the caller runs its signal handlers and calls again with the time that is left.

from libc.errno cimport EAGAIN, EIO, errno
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memset

from rioecho._core.posix cimport (
    F_GETFL,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    O_ACCMODE,
    O_NONBLOCK,
    PIPE_BUF,
    POLLIN,
    POLLOUT,
    S_ISCHR,
    S_ISFIFO,
    S_ISREG,
    S_ISSOCK,
    fcntl,
    fstat,
    iovec,
    msghdr,
    poll,
    pollfd,
    read,
    recv,
    rio_is_pty_master,
    rio_monotonic_ns,
    rio_no_sigpipe,
    rio_write_no_sigpipe,
    send,
    sendmsg,
    stat_t,
)


cdef enum:
    # More than one read or write moves at once on Linux; macOS refuses counts above INT_MAX.
    IO_MAX = 0x7ffff000
    # An answer of fd_wait_or_wake, outside poll's events.
    WOKEN = 1 << 16


cdef enum fd_kind:
    FD_SOCKET   # MSG_DONTWAIT: a call never waits, whatever O_NONBLOCK says
    FD_FILE     # a regular file: always ready, so it is never waited for
    FD_PIPE
    FD_TTY      # and other character devices
    FD_OTHER


cdef struct rio_fd:
    int fd
    fd_kind kind
    int access   # O_RDONLY, O_WRONLY or O_RDWR


cdef inline int fd_open(rio_fd *f, int fd) noexcept nogil:
    """Look at a descriptor. 0, or the errno: EBADF where there is none."""
    cdef stat_t status
    f.fd = fd
    f.kind = FD_OTHER
    if fstat(fd, &status) < 0:
        return errno
    f.access = fcntl(fd, F_GETFL) & O_ACCMODE
    if S_ISSOCK(status.st_mode):
        f.kind = FD_SOCKET
        rio_no_sigpipe(fd)
    elif S_ISREG(status.st_mode):
        f.kind = FD_FILE
    elif S_ISFIFO(status.st_mode):
        f.kind = FD_PIPE
    elif S_ISCHR(status.st_mode):
        f.kind = FD_TTY
    return 0


cdef inline bint would_block(int err) noexcept nogil:
    return err == EAGAIN   # EWOULDBLOCK is the same number on every platform that is built for


cdef inline bint fd_never_waits(const rio_fd *f) noexcept nogil:
    """May a read or a write be tried without asking poll(2) first? O_NONBLOCK is asked for afresh each time: it
    belongs to the open file, and any process that shares it may change it."""
    if f.kind == FD_SOCKET:
        return True
    return (fcntl(f.fd, F_GETFL) & O_NONBLOCK) != 0


cdef inline ssize_t fd_read_waiting(const rio_fd *f, char *data, size_t n, int *err) noexcept nogil:
    """One read that waits for input, unless O_NONBLOCK is set. 0 is the end."""
    cdef ssize_t got = read(f.fd, data, min(n, <size_t>IO_MAX))
    if got < 0:
        err[0] = errno
        if err[0] == EIO and rio_is_pty_master(f.fd):
            return 0
    return got


cdef inline ssize_t fd_read(const rio_fd *f, char *data, size_t n, int *err) noexcept nogil:
    """One read. A socket never waits here; any other descriptor does as its O_NONBLOCK says. 0 is the end."""
    cdef ssize_t got
    if f.kind != FD_SOCKET:
        return fd_read_waiting(f, data, n, err)
    got = recv(f.fd, data, min(n, <size_t>IO_MAX), MSG_DONTWAIT)
    if got < 0:
        err[0] = errno
    return got


cdef inline ssize_t fd_write(const rio_fd *f, const char *data, size_t n, int *err) noexcept nogil:
    """One write, which never raises SIGPIPE. A socket never waits here; others do as their O_NONBLOCK says."""
    cdef ssize_t put
    n = min(n, <size_t>IO_MAX)
    if f.kind == FD_SOCKET:
        put = send(f.fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    else:
        put = rio_write_no_sigpipe(f.fd, data, n)
    if put < 0:
        err[0] = errno
    return put


cdef inline ssize_t fd_write_both(
    const rio_fd *f, const char *first, size_t n, const char *second, size_t m, int *err
) noexcept nogil:
    """fd_write of two pieces of memory, one behind the other, on a socket (m > 0; n + m no more than one write)."""
    cdef iovec parts[2]
    cdef msghdr message
    cdef ssize_t put
    if n == 0:
        return fd_write(f, second, m, err)
    memset(&message, 0, sizeof(message))
    parts[0].iov_base = <void *>first
    parts[0].iov_len = n
    parts[1].iov_base = <void *>second
    parts[1].iov_len = m
    message.msg_iov = parts
    message.msg_iovlen = 2
    put = sendmsg(f.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
    if put < 0:
        err[0] = errno
    return put


cdef inline size_t fd_write_step(const rio_fd *f, size_t n) noexcept nogil:
    """How many of n bytes a blocking descriptor takes without waiting, once poll(2) has called it writable."""
    if f.kind == FD_PIPE:
        return min(n, PIPE_BUF)
    if f.kind == FD_TTY:
        # Near its limit a terminal is called writable for a single character, and waits within the second.
        return min(n, <size_t>1)
    return n


cdef inline int64_t deadline_after(int64_t timeout_ns) noexcept nogil:
    """The monotonic time at which a timeout ends; a negative timeout never does."""
    cdef int64_t now
    if timeout_ns < 0:
        return INT64_MAX
    now = rio_monotonic_ns()
    return now + timeout_ns if timeout_ns < INT64_MAX - now else INT64_MAX


cdef inline int milliseconds_until(int64_t deadline) noexcept nogil:
    """The time left for poll(2) and its kin: -1 for ever, 0 not at all.

    It is rounded up, so that a wait never ends before its deadline and the caller never spins. A wait of more than an
    hour goes in hours, which an int can hold: whoever waits looks at the clock afterwards.
    """
    cdef int64_t left
    if deadline == INT64_MAX:
        return -1
    if deadline == 0:
        return 0
    left = deadline - rio_monotonic_ns()
    return 0 if left <= 0 else <int>min((left + 999_999) // 1_000_000, <int64_t>3_600_000)


cdef inline int fd_wait_or_wake(int fd, short events, int wake_fd, int64_t deadline, int *err) noexcept nogil:
    """Wait for any of the events: what poll(2) reports (errors and hang-ups too), 0 at the deadline, -1 on error.
    WOKEN if `wake_fd` (-1: none) became readable, whatever else there is.

    A deadline of 0 looks and does not wait.
    """
    cdef pollfd p[2]
    cdef int ready
    p[0].fd = fd
    p[0].events = events
    p[1].fd = wake_fd
    p[1].events = POLLIN
    while True:
        p[0].revents = p[1].revents = 0
        ready = poll(p, 1 if wake_fd < 0 else 2, milliseconds_until(deadline))
        if ready < 0:
            err[0] = errno
            return -1
        if ready > 0 and p[1].revents:
            return WOKEN
        if ready > 0:
            return p[0].revents
        if deadline == 0 or rio_monotonic_ns() >= deadline:
            return 0


cdef inline int fd_wait(int fd, short events, int64_t deadline, int *err) noexcept nogil:
    """fd_wait_or_wake, with nothing to be woken by."""
    return fd_wait_or_wake(fd, events, -1, deadline, err)


cdef inline bint fd_ready(int fd, short events) noexcept nogil:
    """Is one of the events there now?"""
    cdef int ignored = 0
    return fd_wait(fd, events, 0, &ignored) > 0


cdef inline ssize_t fd_try_read(const rio_fd *f, char *data, size_t n, int *err) noexcept nogil:
    """One read that never waits, whatever the descriptor: where it would have to, -1 and EAGAIN."""
    if fd_never_waits(f):
        return fd_read(f, data, n, err)
    if f.kind == FD_FILE or fd_ready(f.fd, POLLIN):
        return fd_read_waiting(f, data, n, err)
    err[0] = EAGAIN
    return -1


cdef inline ssize_t fd_try_write(const rio_fd *f, const char *data, size_t n, int *err) noexcept nogil:
    """One write that never waits, whatever the descriptor: where it would have to, -1 and EAGAIN."""
    if f.kind == FD_FILE or fd_never_waits(f):
        return fd_write(f, data, n, err)
    if fd_ready(f.fd, POLLOUT):
        return fd_write(f, data, fd_write_step(f, n), err)
    err[0] = EAGAIN
    return -1

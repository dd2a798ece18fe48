# One read, one write or one wait on a descriptor. No buffer, no Python object, no loop.
#
# Each function makes one attempt and returns what the system call does: a number of bytes, or -1 with the errno in
# `err`. EINTR is returned as well: the caller runs its signal handlers and calls again with the remaining time.

from libc.errno cimport EAGAIN, EIO, errno
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memset

from rioecho._core.posix cimport (
    F_GETFL,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    O_ACCMODE,
    O_NONBLOCK,
    O_RDWR,
    PIPE_BUF,
    POLLIN,
    POLLOUT,
    S_ISBLK,
    S_ISCHR,
    S_ISFIFO,
    S_ISREG,
    S_ISSOCK,
    SOCK_STREAM,
    fcntl,
    fstat,
    iovec,
    msghdr,
    poll,
    pollfd,
    read,
    recv,
    rio_assert,
    rio_hung_up,
    rio_monotonic_ns,
    rio_no_sigpipe,
    rio_nothing_yet,
    rio_socket_type,
    rio_write_no_sigpipe,
    send,
    sendmsg,
    stat_t,
)


cdef enum:
    # Maximum number of bytes per read or write. Linux transfers no more at once; macOS rejects more than INT_MAX.
    IO_MAX = 0x7ffff000
    # Result of fd_wait_or_wake when wake_fd is readable; not one of poll's events.
    WOKEN = 1 << 16


cdef enum fd_kind:
    FD_SOCKET   # used with MSG_DONTWAIT, so that a call does not block, with or without O_NONBLOCK
    FD_FILE     # a regular file or a block device: always ready, and with a position
    FD_PIPE
    FD_TTY      # or another character device
    FD_OTHER


cdef struct rio_fd:
    int fd
    fd_kind kind
    int access   # O_RDONLY, O_WRONLY or O_RDWR


cdef inline void fd_is_stream(rio_fd *f, int fd) noexcept nogil:
    """Initialise f for what is known to be a socket that carries bytes."""
    f.fd = fd
    f.kind = FD_SOCKET
    f.access = O_RDWR
    rio_no_sigpipe(fd)


cdef inline bint fd_open_socket(rio_fd *f, int fd) noexcept nogil:
    """Initialise f for a socket that carries bytes, with one system call. Returns False for anything else."""
    if rio_socket_type(fd) != SOCK_STREAM:
        return False
    fd_is_stream(f, fd)
    return True


cdef inline int fd_open(rio_fd *f, int fd) noexcept nogil:
    """Initialise f for a descriptor. Returns 0, or the errno: EBADF if it is not open."""
    cdef stat_t status
    f.fd = fd
    f.kind = FD_OTHER
    if fstat(fd, &status) < 0:
        return errno
    f.access = fcntl(fd, F_GETFL) & O_ACCMODE
    if S_ISSOCK(status.st_mode):
        f.kind = FD_SOCKET
        rio_no_sigpipe(fd)
    elif S_ISREG(status.st_mode) or S_ISBLK(status.st_mode):
        f.kind = FD_FILE
    elif S_ISFIFO(status.st_mode):
        f.kind = FD_PIPE
    elif S_ISCHR(status.st_mode):
        f.kind = FD_TTY
    return 0


cdef inline bint fd_has_position(const rio_fd *f) noexcept nogil:
    """Report whether reads and writes of the descriptor share one position: a file that is open for both."""
    return f.kind == FD_FILE and f.access == O_RDWR


cdef inline bint would_block(int err) noexcept nogil:
    return err == EAGAIN   # EWOULDBLOCK is the same number on all supported platforms


cdef inline bint fd_never_waits(const rio_fd *f) noexcept nogil:
    """Report whether a read or a write can be tried without calling poll(2) first.

    O_NONBLOCK is checked each time: it belongs to the open file description, which another process may share.
    """
    if f.kind == FD_SOCKET:
        return True
    return (fcntl(f.fd, F_GETFL) & O_NONBLOCK) != 0


cdef inline ssize_t read_once(int fd, char *data, size_t n, int *err) noexcept nogil:
    """Make one read of n > 0 bytes, which blocks unless O_NONBLOCK is set. Returns 0 at EOF, and only there.

    If the read returned 0 because there is no data yet, returns -1 with EAGAIN: wait for POLLIN and read again.
    """
    cdef ssize_t got = read(fd, data, min(n, <size_t>IO_MAX))
    if got > 0:
        return got
    if got < 0:
        err[0] = errno
        return 0 if err[0] == EIO and rio_hung_up(fd) else -1
    if rio_nothing_yet(fd):
        err[0] = EAGAIN
        return -1
    return 0


cdef inline ssize_t fd_read_waiting(const rio_fd *f, char *data, size_t n, int *err) noexcept nogil:
    """Make one read as read_once does, on any descriptor but a socket."""
    return read_once(f.fd, data, n, err)


cdef inline ssize_t fd_read(const rio_fd *f, char *data, size_t n, int *err) noexcept nogil:
    """Make one read. Returns 0 at EOF. Does not block on a socket; on others it depends on O_NONBLOCK."""
    cdef ssize_t got
    if f.kind != FD_SOCKET:
        return fd_read_waiting(f, data, n, err)
    got = recv(f.fd, data, min(n, <size_t>IO_MAX), MSG_DONTWAIT)
    if got < 0:
        err[0] = errno
    return got


cdef inline ssize_t fd_peek(const rio_fd *f, char *data, size_t n, int *err) noexcept nogil:
    """Copy up to n bytes of what a socket has received, without removing them. Does not block. Returns 0 at EOF."""
    cdef ssize_t got = recv(f.fd, data, min(n, <size_t>IO_MAX), MSG_DONTWAIT | MSG_PEEK)
    if got < 0:
        err[0] = errno
    return got


cdef inline ssize_t fd_write(const rio_fd *f, const char *data, size_t n, int *err) noexcept nogil:
    """Make one write, without SIGPIPE. Does not block on a socket; on others it depends on O_NONBLOCK."""
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
    """Write two blocks of memory with one call, as fd_write does, to a socket (n > 0, m > 0; n + m <= IO_MAX)."""
    cdef iovec parts[2]
    cdef msghdr message
    cdef ssize_t put
    rio_assert(n > 0 and m > 0)
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
    """Return how many of n bytes can be written to a blocking descriptor that poll(2) reports as writable."""
    if f.kind == FD_PIPE:
        return min(n, PIPE_BUF)
    if f.kind == FD_TTY:
        # A terminal is reported as writable if there is room for one character, and a second one may block.
        return min(n, <size_t>1)
    return n


cdef inline int64_t deadline_after(int64_t timeout_ns) noexcept nogil:
    """Return the time on the monotonic clock at which a timeout expires; INT64_MAX if it is negative (no limit)."""
    cdef int64_t now
    if timeout_ns < 0:
        return INT64_MAX
    now = rio_monotonic_ns()
    return now + timeout_ns if timeout_ns < INT64_MAX - now else INT64_MAX


cdef inline int milliseconds_until(int64_t deadline) noexcept nogil:
    """Return the time left as an argument for poll(2) and epoll_wait(2): -1 for no limit, 0 for no wait.

    It is rounded up, so that a wait does not end before its deadline and the caller does not spin. Longer waits are
    split into hours to fit an int; callers check the clock again.
    """
    cdef int64_t left
    if deadline == INT64_MAX:
        return -1
    if deadline == 0:
        return 0
    left = deadline - rio_monotonic_ns()
    return 0 if left <= 0 else <int>min((left + 999_999) // 1_000_000, <int64_t>3_600_000)


cdef inline int fd_wait_or_wake(int fd, short events, int wake_fd, int64_t deadline, int *err) noexcept nogil:
    """Wait until one of the events is pending, ``wake_fd`` (-1 for none) is readable or the deadline has passed.

    Returns the pending events as poll(2) reports them, including errors and hang-ups; WOKEN if ``wake_fd`` is readable,
    whatever else is pending; 0 at the deadline; -1 on an error. A deadline of 0 only checks.
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
    """Wait as fd_wait_or_wake does, without a ``wake_fd``."""
    return fd_wait_or_wake(fd, events, -1, deadline, err)


cdef inline bint fd_ready(int fd, short events) noexcept nogil:
    """Report whether one of the events is pending."""
    cdef int ignored = 0
    return fd_wait(fd, events, 0, &ignored) > 0


cdef inline ssize_t fd_try_read(const rio_fd *f, char *data, size_t n, int *err) noexcept nogil:
    """Make one read without blocking, on any descriptor. If it would block, returns -1 with EAGAIN."""
    if fd_never_waits(f):
        return fd_read(f, data, n, err)
    if f.kind == FD_FILE or fd_ready(f.fd, POLLIN):
        return fd_read_waiting(f, data, n, err)
    err[0] = EAGAIN
    return -1


cdef inline ssize_t fd_try_write(const rio_fd *f, const char *data, size_t n, int *err) noexcept nogil:
    """Make one write without blocking, on any descriptor. If it would block, returns -1 with EAGAIN."""
    if f.kind == FD_FILE or fd_never_waits(f):
        return fd_write(f, data, n, err)
    if fd_ready(f.fd, POLLOUT):
        return fd_write(f, data, fd_write_step(f, n), err)
    err[0] = EAGAIN
    return -1

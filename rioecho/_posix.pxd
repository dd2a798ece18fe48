# Every C declaration of the project that Cython does not bring along; no logic.
# Declared from _compat.h, which includes the system's headers in the right order.

from libc.stdint cimport int64_t

cdef extern from "_compat.h" nogil:
    # <sys/socket.h>, <unistd.h>, <fcntl.h>
    ssize_t recv(int fd, void *data, size_t n, int flags)
    ssize_t send(int fd, const void *data, size_t n, int flags)
    ssize_t read(int fd, void *data, size_t n)
    int close(int fd)
    int fcntl(int fd, int command, ...)
    int F_GETFL
    int O_NONBLOCK
    int O_ACCMODE
    int O_RDONLY
    int O_RDWR
    int O_WRONLY
    int shutdown(int fd, int how)
    int SHUT_WR
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

    # <poll.h>
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned int n, int milliseconds)
    short POLLIN
    short POLLOUT
    short POLLHUP
    short POLLERR
    short POLLNVAL

    # <sys/stat.h>
    ctypedef unsigned int mode_t
    struct stat_t "stat":
        mode_t st_mode
    int fstat(int fd, stat_t *status)
    bint S_ISSOCK(mode_t mode)
    bint S_ISFIFO(mode_t mode)
    bint S_ISCHR(mode_t mode)
    bint S_ISREG(mode_t mode)

    # <string.h>, <limits.h>, <sched.h>, <signal.h>
    void *memmem(const void *haystack, size_t n, const void *needle, size_t length)
    size_t PIPE_BUF
    int sched_yield()
    ctypedef struct sigset_t:
        pass

    # _compat.h itself
    void rio_no_sigpipe(int fd)
    void rio_set_errno(int err)
    int64_t rio_monotonic_ns()
    ctypedef struct rio_sigpipe:
        pass
    void rio_sigpipe_block(rio_sigpipe *guard)
    void rio_sigpipe_restore(const rio_sigpipe *guard)
    ssize_t rio_write_no_sigpipe(int fd, const void *data, size_t n)
    void rio_signals_hold(sigset_t *before)
    void rio_signals_release(const sigset_t *before)
    bint rio_is_pty_master(int fd)
    int RIO_FREE
    int RIO_TAKEN
    int RIO_CLOSED
    bint rio_flag_take(int *flag)
    void rio_flag_put(int *flag, int state)
    int rio_flag_state(int *flag)

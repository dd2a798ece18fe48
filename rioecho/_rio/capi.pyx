"""The book's RIO functions for Cython code (CS:APP 10.5), without the GIL and without Python objects.

With class Rio they share only the functions of _core/fdio.pxd: their buffer is in the caller's ``rio_t``. The contract
of each function is in capi.pxd.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memchr, memcpy

from rioecho._core.fdio cimport fd_open, fd_wait, fd_write, read_once, rio_fd, would_block
from rioecho._core.posix cimport POLLIN, POLLOUT, rio_monotonic_ns, rio_set_errno, rio_socket_limit_ns


cdef void rio_readinitb(rio_t *rp, int fd) noexcept nogil:
    """Associate rp with fd and an empty buffer."""
    rp.rio_fd = fd
    rp.rio_cnt = 0
    rp.rio_done = 0
    rp.rio_bufptr = rp.rio_buf


cdef ssize_t rio_readlineb(rio_t *rp, void *usrbuf, size_t maxlen) noexcept nogil:
    """Read a line of at most maxlen - 1 bytes, including its newline, and append a NUL."""
    cdef char *to = <char *>usrbuf
    cdef char *newline = NULL
    cdef size_t n = 0, step
    cdef ssize_t got
    if maxlen < 2:
        rio_set_errno(EINVAL)
        return -1
    while n < maxlen - 1 and newline == NULL:
        if rp.rio_cnt == 0:
            got = read_waiting(rp.rio_fd, rp.rio_buf, RIO_BUFSIZE)
            if got < 0:
                rp.rio_done = n
                return -1
            if got == 0:
                break
            rp.rio_bufptr = rp.rio_buf
            rp.rio_cnt = got
        step = min(rp.rio_cnt, maxlen - 1 - n)
        newline = <char *>memchr(rp.rio_bufptr, c"\n", step)
        if newline != NULL:
            step = newline - rp.rio_bufptr + 1
        memcpy(to + n, rp.rio_bufptr, step)
        rp.rio_bufptr += step
        rp.rio_cnt -= step
        n += step
    to[n] = 0
    return n


cdef ssize_t rio_readnb(rio_t *rp, void *usrbuf, size_t n) noexcept nogil:
    """Read exactly n bytes, the buffered ones first; fewer only at EOF."""
    cdef char *to = <char *>usrbuf
    cdef size_t done = min(n, rp.rio_cnt)
    cdef ssize_t got
    memcpy(to, rp.rio_bufptr, done)
    rp.rio_bufptr += done
    rp.rio_cnt -= done
    while done < n:   # the buffer is empty
        if n - done >= RIO_BUFSIZE:
            got = read_waiting(rp.rio_fd, to + done, n - done)
        else:
            got = read_waiting(rp.rio_fd, rp.rio_buf, RIO_BUFSIZE)
        if got < 0:
            rp.rio_done = done
            return -1
        if got == 0:
            break
        if n - done < RIO_BUFSIZE:
            rp.rio_bufptr = rp.rio_buf
            rp.rio_cnt = got
            got = min(<size_t>got, n - done)
            memcpy(to + done, rp.rio_bufptr, got)
            rp.rio_bufptr += got
            rp.rio_cnt -= got
        done += got
    return done


cdef ssize_t rio_readn(int fd, void *usrbuf, size_t n) noexcept nogil:
    """Read exactly n bytes without a buffer; fewer only at EOF."""
    cdef size_t done = 0
    cdef ssize_t got
    while done < n:
        got = read_waiting(fd, <char *>usrbuf + done, n - done)
        if got < 0:
            return -1
        if got == 0:
            break
        done += got
    return done


cdef ssize_t rio_writen(int fd, const void *usrbuf, size_t n) noexcept nogil:
    """Write exactly n bytes and return n."""
    cdef rio_fd f
    cdef size_t done = 0
    cdef ssize_t put
    cdef int64_t started = rio_monotonic_ns()
    cdef int err = 0
    err = fd_open(&f, fd)
    if err:
        rio_set_errno(err)
        return -1
    while done < n:
        put = fd_write(&f, <const char *>usrbuf + done, n - done, &err)
        if put >= 0:
            done += put
            started = rio_monotonic_ns()
        elif not go_on(fd, POLLOUT, started, &err):
            return -1
    return n


cdef ssize_t read_waiting(int fd, char *data, size_t n) noexcept nogil:
    """Make one read, retry after EINTR and wait while there is no data. Returns its result, with errno set for -1."""
    cdef ssize_t got
    cdef int64_t started = rio_monotonic_ns()
    cdef int err = 0
    while True:
        got = read_once(fd, data, n, &err)
        if got >= 0:
            return got
        if not go_on(fd, POLLIN, started, &err):
            return -1


cdef bint go_on(int fd, short event, int64_t started, int *err) noexcept nogil:
    """Report whether to retry a call that failed with ``err``, after waiting for ``event`` if it would block.

    ``started`` is the time at which the bytes were first asked for: the socket's own time limit counts from there,
    whether the kernel has waited already (a blocking socket) or not, and whatever signals arrive. If the result is
    False, errno is the error: EAGAIN at the limit.
    """
    cdef int64_t limit
    cdef int64_t deadline = INT64_MAX
    cdef int ready
    if would_block(err[0]) or err[0] == EINTR:
        limit = rio_socket_limit_ns(fd, event == POLLOUT)
        if limit < 0 and err[0] == EINTR:
            return True
        if 0 <= limit < INT64_MAX - started:
            deadline = started + limit
        ready = fd_wait(fd, event, deadline, err)
        if ready > 0 or (ready < 0 and err[0] == EINTR):
            return True
        if ready == 0:
            err[0] = EAGAIN
    rio_set_errno(err[0])
    return False

"""The book's RIO functions for Cython code (CS:APP 10.5), without the GIL and without Python objects.

With class Rio they share only the functions of _core/fdio.pxd: their buffer is in the caller's ``rio_t``. The contract
of each function is in capi.pxd.
"""

from libc.errno cimport EINTR, EINVAL
from libc.stdint cimport INT64_MAX
from libc.string cimport memchr, memcpy

from rioecho._core.fdio cimport fd_open, fd_wait, fd_write, read_once, rio_fd, would_block
from rioecho._core.posix cimport POLLIN, POLLOUT, rio_set_errno


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
    cdef int err = 0
    err = fd_open(&f, fd)
    if err:
        rio_set_errno(err)
        return -1
    while done < n:
        put = fd_write(&f, <const char *>usrbuf + done, n - done, &err)
        if put >= 0:
            done += put
        elif not go_on(fd, POLLOUT, &err):
            return -1
    return n


cdef ssize_t read_waiting(int fd, char *data, size_t n) noexcept nogil:
    """Make one read, retry after EINTR and wait while there is no data. Returns its result, with errno set for -1."""
    cdef ssize_t got
    cdef int err = 0
    while True:
        got = read_once(fd, data, n, &err)
        if got >= 0:
            return got
        if not go_on(fd, POLLIN, &err):
            return -1


cdef bint go_on(int fd, short event, int *err) noexcept nogil:
    """Report whether to retry a call that failed with ``err``. If the call would block, first wait for ``event``.

    If not, errno is the error.
    """
    if (would_block(err[0]) and fd_wait(fd, event, INT64_MAX, err) > 0) or err[0] == EINTR:
        return True
    rio_set_errno(err[0])
    return False

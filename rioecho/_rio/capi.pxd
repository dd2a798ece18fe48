# The book's RIO at C level, without the GIL and without Python objects; cimport it from rioecho.rio.
#
#     from rioecho.rio cimport rio_t, rio_readinitb, rio_readlineb, rio_readnb, rio_readn, rio_writen
#
# The signatures are the book's (CS:APP 10.5). Results are byte counts, 0 at the end of the input, or -1 with errno set.
# EINTR is retried (no Python signal handler runs: there is no GIL to run it with), a descriptor with O_NONBLOCK is
# waited for, and no SIGPIPE is raised. See _rio/capi.pyx for each function's contract.

cdef enum:
    RIO_BUFSIZE = 8192

ctypedef struct rio_t:
    # It holds no memory but itself: there is nothing to free. One thread at a time.
    int rio_fd                    # the descriptor, the caller's
    size_t rio_cnt                # unread bytes in rio_buf
    char *rio_bufptr              # the next unread byte
    size_t rio_done               # after a call that returned -1: how many bytes it had put into usrbuf before
    char rio_buf[RIO_BUFSIZE]

cdef void rio_readinitb(rio_t *rp, int fd) noexcept nogil
cdef ssize_t rio_readlineb(rio_t *rp, void *usrbuf, size_t maxlen) noexcept nogil
cdef ssize_t rio_readnb(rio_t *rp, void *usrbuf, size_t n) noexcept nogil
cdef ssize_t rio_readn(int fd, void *usrbuf, size_t n) noexcept nogil
cdef ssize_t rio_writen(int fd, const void *usrbuf, size_t n) noexcept nogil

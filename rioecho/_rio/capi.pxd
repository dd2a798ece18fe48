# The book's RIO functions at C level, without the GIL and without Python objects; cimport them from rioecho.rio.
#
#     from rioecho.rio cimport rio_t, rio_readinitb, rio_readlineb, rio_readnb, rio_readn, rio_writen
#
# The signatures are the book's (CS:APP 10.5). The functions that read or write return a number of bytes, 0 at EOF, or
# -1 with errno set. They retry after EINTR (Python signal handlers do not run, because the GIL is not held), wait for a
# descriptor with O_NONBLOCK, and raise no SIGPIPE. They wait for a terminal that has no data (VMIN=0), and for a FIFO
# that has not been opened for writing yet. A socket must be of type SOCK_STREAM. If the socket has a time limit of its
# own (SO_RCVTIMEO, SO_SNDTIMEO), a wait for the next bytes ends after it, with errno EAGAIN; the wait has no limit
# otherwise. The caller owns the descriptor and every buffer.

cdef enum:
    RIO_BUFSIZE = 8192

ctypedef struct rio_t:
    # The buffer is part of the struct, so there is nothing to free. For use by one thread at a time.
    int rio_fd                    # the file descriptor; the caller owns it
    size_t rio_cnt                # number of unread bytes in rio_buf
    char *rio_bufptr              # the next unread byte
    size_t rio_done               # after a call that returned -1: number of bytes that it had stored in usrbuf
    char rio_buf[RIO_BUFSIZE]

# Associate rp with fd and an empty buffer.
cdef void rio_readinitb(rio_t *rp, int fd) noexcept nogil

# Read a line of at most maxlen - 1 bytes, including its newline, and append a NUL. Returns the length without the NUL.
# A longer line is returned in pieces by successive calls; all but the last piece have no newline. Returns an
# unterminated last line as it is, then 0 at EOF; -1 with errno EINVAL if maxlen < 2.
# On an error, the first rp.rio_done bytes of usrbuf are the beginning of the line and have no NUL.
cdef ssize_t rio_readlineb(rio_t *rp, void *usrbuf, size_t maxlen) noexcept nogil

# Read exactly n bytes, the buffered ones first; fewer only at EOF.
# On an error, the first rp.rio_done bytes of usrbuf have been read.
cdef ssize_t rio_readnb(rio_t *rp, void *usrbuf, size_t n) noexcept nogil

# Read exactly n bytes without a buffer, so that no byte after them is read; fewer only at EOF.
# On an error, the number of bytes read is unknown.
cdef ssize_t rio_readn(int fd, void *usrbuf, size_t n) noexcept nogil

# Write exactly n bytes and return n. On an error, the number of bytes written is unknown.
cdef ssize_t rio_writen(int fd, const void *usrbuf, size_t n) noexcept nogil

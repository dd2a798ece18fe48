# Bulk in an event loop with raw framing: bytes go from a socket into a pipe and back by splice(2), which copies none of
# them. The loop has one pipe, empty between two steps. For less than a page or two a copy is cheaper, so a
# connection is spliced from only after one of its reads has filled the area, and until it sends less at a time.

from libc.errno cimport EINVAL, ENOSYS, EOPNOTSUPP, EPERM, errno

from rioecho._core.budget cimport share_room
from rioecho._core.buffer cimport buffer_added
from rioecho._core.posix cimport (
    F_GETFL,
    F_SETFL,
    O_NONBLOCK,
    close,
    fcntl,
    read,
    rio_assert,
    rio_sigpipe,
    rio_sigpipe_block,
    rio_sigpipe_restore,
)
from rioecho._server.echo cimport CHUNK, LINGERING
from rioecho._server.kept cimport conn_reserve
from rioecho._server.loop cimport BULK_SLOTS, conn_t, loop_t


cdef extern from "rioecho/_core/splice.h" nogil:
    size_t rio_splice_pipe(int *ends, size_t least, size_t size)
    ssize_t rio_splice(int fd, int to, size_t n)


cdef enum:
    BULK = 262_144       # maximum number of bytes that are spliced in one turn
    BULK_LEAST = 16_384  # after fewer bytes the connection is read from again


cdef inline void bulk_open(loop_t *l) noexcept nogil:
    """Create the pipe. Without one, the loop reads and writes."""
    l.bulk = rio_splice_pipe(l.pipe, CHUNK, BULK)


cdef inline void bulk_close(loop_t *l) noexcept nogil:
    if l.bulk:
        close(l.pipe[0])
        close(l.pipe[1])
        l.bulk = 0


cdef inline bint bulk_is_due(const loop_t *l, const conn_t *c) noexcept nogil:
    """Report whether to splice from a connection that holds nothing."""
    return (
        l.bulked[<unsigned int>c.fd % BULK_SLOTS] == c
        and c.phase < LINGERING
        and share_room(&l.memory) >= l.bulk   # the peer may take nothing of what it sends
    )


cdef inline void bulk_begin(loop_t *l, conn_t *c) noexcept nogil:
    """Splice from a connection from now on. Another one may lose its place by that, and is read from again."""
    cdef int flags = fcntl(c.fd, F_GETFL)
    # splice() waits for a socket that is in blocking mode, whatever its flags.
    if flags >= 0 and (flags & O_NONBLOCK or fcntl(c.fd, F_SETFL, flags | O_NONBLOCK) == 0):
        l.bulked[<unsigned int>c.fd % BULK_SLOTS] = c


cdef inline void bulk_end(loop_t *l, const conn_t *c) noexcept nogil:
    """Read from a connection again, or close it."""
    if l.bulked[<unsigned int>c.fd % BULK_SLOTS] == c:
        l.bulked[<unsigned int>c.fd % BULK_SLOTS] = NULL


cdef inline bint bulk_is_refused(int err) noexcept nogil:
    """Report whether splice(2) is not to be had: of this socket, or in this process. read(2) and send(2) are."""
    return err == EINVAL or err == ENOSYS or err == EPERM or err == EOPNOTSUPP


cdef inline ssize_t bulk_receive(loop_t *l, conn_t *c, int *err) noexcept nogil:
    """Move what has arrived into the pipe, as much as fits. Returns the number of bytes, or -1 with the errno.

    Returns 0 if a read is to be made instead: at EOF, and of a socket that cannot be spliced from.
    """
    cdef ssize_t n = rio_splice(c.fd, l.pipe[1], l.bulk)
    if n < BULK_LEAST:
        err[0] = errno
        bulk_end(l, c)
        if n < 0 and bulk_is_refused(err[0]):
            return 0
    return n


cdef inline size_t bulk_send(loop_t *l, conn_t *c, size_t n, int *err) noexcept nogil:
    """Send the n bytes in the pipe without blocking. Returns how many were sent; if not all, the errno is stored."""
    cdef rio_sigpipe guard
    cdef size_t put = 0
    cdef ssize_t more
    rio_sigpipe_block(&guard)   # splice() cannot be told to raise no SIGPIPE
    while put < n:
        more = rio_splice(l.pipe[0], c.fd, n - put)
        if more <= 0:
            err[0] = errno
            break
        put += more
    rio_sigpipe_restore(&guard)
    return put


cdef inline int bulk_keep(loop_t *l, conn_t *c, size_t n) noexcept nogil:
    """Move the n bytes in the pipe to the buffer. Returns 0, or -1 if there is no memory."""
    cdef ssize_t got
    if conn_reserve(l, c, n) < 0:
        return -1
    while n:
        got = read(l.pipe[0], c.kept.b.data + c.kept.b.w, n)
        rio_assert(got > 0)
        if got > 0:   # a pipe that is neither empty nor a terminal is not interrupted
            buffer_added(&c.kept.b, got)
            n -= got
    return 0


cdef inline void bulk_drop(loop_t *l, size_t n) noexcept nogil:
    """Discard the n bytes in the pipe, of a connection that is closed."""
    cdef ssize_t got
    while n:
        got = read(l.pipe[0], l.area, min(n, <size_t>CHUNK))
        rio_assert(got > 0)
        if got > 0:
            n -= got

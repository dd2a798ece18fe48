# The parts that the blocking echo and the event loop share: which bytes are due, counted sends, the progress of a peer,
# and the memory of unsent bytes.

from libc.stdint cimport int64_t, uint64_t

from rioecho._core.budget cimport share_give, share_t
from rioecho._core.buffer cimport buffer_free, buffer_held, buffer_resize, rio_buffer, whole_lines
from rioecho._core.counts cimport counts_t
from rioecho._core.fdio cimport deadline_after, fd_try_write, fd_write_both, rio_fd
from rioecho._core.posix cimport rio_atomic_add, rio_unacknowledged


cdef enum:
    CHUNK = 65536        # maximum number of bytes of one read
    CHUNK_MIN = 4096     # the same while memory is short
    LOOKS = 8            # checks for progress in one idle timeout, which may so be exceeded by an eighth
    # Milliseconds between two checks for free memory: of the event loop, and of the blocking echo, which doubles its
    # interval up to the maximum because there may be thousands of echoes.
    MEMORY_LOOK = 10
    MEMORY_LOOK_MAX = 320
    FIRST_BYTES = 250    # milliseconds after the stop in which a new client may send its first bytes


cdef extern from "rioecho/_core/compat.h" nogil:
    # The events of a connection that waits for memory: EOF and reset.
    short PAUSED "POLLRDHUP"
    # The same once its input has ended or the server is stopping: none, it is not watched.
    short HALTED "POLLNVAL"


cdef enum phase:
    ECHOING
    DRAINING    # the stop is requested: echo what has arrived, and do not wait for more
    LINGERING   # everything is sent and the sending side is closed: read and discard until EOF
    OPENING     # event loop: nothing to be echoed has arrived yet


cdef inline int64_t patience(int64_t drain) noexcept nogil:
    """Return the time until which draining, begun now, waits for the first bytes of a client that has sent nothing.

    Without this, a client whose connection is accepted right before the stop would get EOF instead of its echo.
    """
    cdef int64_t most = <int64_t>FIRST_BYTES * 1_000_000
    return deadline_after(most if drain < 0 else min(most, drain // 2))


cdef inline size_t echo_due(
    const char *data, size_t before, size_t n, size_t max_line, bint ended, uint64_t *lines
) noexcept nogil:
    """Return how many bytes are due to be sent, of ``before`` bytes without a newline followed by n bytes of ``data``.

    Whole lines are due, and their number is added to ``lines``; so are the remaining bytes if they make a line of
    ``max_line`` bytes or more, or if ``ended``. max_line 0 means raw: everything is due.
    """
    cdef size_t back
    if max_line == 0:
        return before + n
    back = whole_lines(data, n, lines)
    if ended or n - back + (0 if back else before) >= max_line:
        return before + n
    return before + back if back else 0


cdef inline ssize_t echo_send(
    const rio_fd *f, const char *first, size_t n, const char *second, size_t m, counts_t *counts, int *err
) noexcept nogil:
    """Send two pieces of memory, the second of which may be empty, without blocking.

    Returns the number of bytes sent, or -1 with the errno in ``err``. The bytes are counted before they are sent, so
    that a client that holds its echo always finds it in the counts; unsent bytes are subtracted again.
    """
    cdef ssize_t put
    rio_atomic_add(&counts.bytes_out, n + m)
    if m == 0:
        put = fd_try_write(f, first, n, err)
    else:
        put = fd_write_both(f, first, n, second, m, err)
    if put < <ssize_t>(n + m):
        rio_atomic_add(&counts.bytes_out, <uint64_t>(max(put, 0) - <ssize_t>(n + m)))
    return put


cdef inline bint peer_took(int fd, int *unacknowledged) noexcept nogil:
    """Report whether the peer has acknowledged bytes since the number of unacknowledged ones was stored; update it.

    poll() reports room only when a third of the send buffer is free, which may be more than a slow reader consumes
    within its timeout.
    """
    cdef int before = unacknowledged[0]
    unacknowledged[0] = rio_unacknowledged(fd)
    return unacknowledged[0] < before


# ---- memory of the bytes received and not yet sent, and its accounting


cdef inline int held_resize(share_t *s, rio_buffer *b, size_t cap) noexcept nogil:
    """Resize a buffer. Returns 0, or -1 if the allocation fails.

    The caller has taken the bytes that it grows by from the share; after a failure they are returned to it.
    """
    cdef size_t before = b.cap
    if buffer_resize(b, cap) < 0:
        if cap > before:
            share_give(s, cap - before)
        return -1
    if cap < before:
        share_give(s, before - cap)
    return 0


cdef inline void held_free(share_t *s, rio_buffer *b) noexcept nogil:
    if b.cap:
        share_give(s, b.cap)
        buffer_free(b)


cdef inline void held_shrink(share_t *s, rio_buffer *b) noexcept nogil:
    """Release the memory of bytes that were sent, if what is left is nothing or much smaller."""
    cdef size_t n = buffer_held(b)
    if n == 0:
        held_free(s, b)
    elif b.cap > CHUNK and n < b.cap // 4:
        held_resize(s, b, n)   # if the allocation fails, the buffer stays as it is

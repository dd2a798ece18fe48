# What the blocking echo and the event loop have in common: which bytes go back, how they are counted as they go, when
# a peer makes progress, and the memory for what waits.

from libc.stdint cimport uint64_t

from rioecho._core.budget cimport share_give, share_t
from rioecho._core.buffer cimport buffer_free, buffer_held, buffer_resize, rio_buffer, whole_lines
from rioecho._core.counts cimport counts_t
from rioecho._core.fdio cimport fd_try_write, fd_write_both, rio_fd
from rioecho._core.posix cimport rio_atomic_add, rio_unacknowledged


cdef enum:
    CHUNK = 65536        # what is received at once
    CHUNK_MIN = 4096     # the same while memory is short
    LOOKS = 8            # at what the peer takes, in the time that it may take nothing: it has at most an eighth more
    # Milliseconds between two looks whether there is memory again: the event loop's, and the blocking echo's, of which
    # there may be thousands and which doubles its own.
    MEMORY_LOOK = 10
    MEMORY_LOOK_MAX = 320


cdef extern from "rioecho/_core/compat.h" nogil:
    # What a connection that waits for memory is watched for: the end of its input, or its reset.
    short PAUSED "POLLRDHUP"


cdef enum phase:
    ECHOING
    DRAINING    # told to stop: echo what has arrived, wait for no more
    LINGERING   # all is echoed and our side is closed: read on until the peer has closed its own


cdef inline size_t echo_due(
    const char *data, size_t before, size_t n, size_t max_line, bint ended, uint64_t *lines
) noexcept nogil:
    """Return how many bytes go back now, of `before` bytes that hold no newline and n more that came behind them.

    Whole lines do, whose number is added to `lines`; with them the rest if it makes a line too long, or if the input
    has ended. The data begins behind the first `before` bytes. max_line 0: raw, everything goes back.
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
    """Send two pieces of memory, the second of which may be empty, without waiting: a count, or -1 and the errno.

    They are counted before they are sent, so that a client that holds its echo always finds it in the counts; what was
    not sent is taken off again.
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
    """Report whether the peer has taken some of what waits for it since the number was stored, and store it anew.

    poll() does not say so before a third of the send buffer is free, which may be more than a slow reader takes in
    all of its time.
    """
    cdef int before = unacknowledged[0]
    unacknowledged[0] = rio_unacknowledged(fd)
    return unacknowledged[0] < before


# ---- memory for what is received and not yet sent back, and its account


cdef inline int held_resize(share_t *s, rio_buffer *b, size_t cap) noexcept nogil:
    """Change a buffer's memory. What it grows by the caller has taken, and it is given back if there is no memory: -1.
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
    """Do not let what is left, nothing or the beginning of a line, hold the memory of what was sent."""
    cdef size_t n = buffer_held(b)
    if n == 0:
        held_free(s, b)
    elif b.cap > CHUNK and n < b.cap // 4:
        held_resize(s, b, n)   # without memory it stays as it is

# The poller (_core/poller.pxd) over poll(2).

from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.errno cimport EBADF, EEXIST, ENOENT, ENOMEM, errno

from rioecho._core.posix cimport poll, pollfd
from rioecho._core.ready cimport READY_MAX, ready_t


cdef struct pollset_t:
    pollfd *fds        # the descriptors, in no order
    void **data        # the owner's pointer for each
    size_t *places     # for each descriptor its index in fds plus 1, or 0 if it is not watched
    size_t count
    size_t cap         # allocated length of fds and data
    size_t top         # allocated length of places
    size_t next        # index at which the next scan of fds begins, for fairness


cdef inline void pollset_init(pollset_t *s) noexcept nogil:
    s.fds = NULL
    s.data = NULL
    s.places = NULL
    s.count = s.cap = s.top = s.next = 0


cdef inline void pollset_close(pollset_t *s) noexcept nogil:
    PyMem_RawFree(s.fds)
    PyMem_RawFree(s.data)
    PyMem_RawFree(s.places)
    pollset_init(s)


cdef inline int pollset_grow(pollset_t *s, int fd) noexcept nogil:
    """Make room for descriptor ``fd``. Returns 0, or ENOMEM."""
    cdef size_t cap = max(s.cap * 2, <size_t>16)
    cdef size_t top = max(s.top * 2, <size_t>fd + 1)
    cdef size_t i
    cdef void *grown
    if s.count == s.cap:
        grown = PyMem_RawRealloc(s.fds, cap * sizeof(pollfd))
        if grown == NULL:
            return ENOMEM
        s.fds = <pollfd *>grown
        grown = PyMem_RawRealloc(s.data, cap * sizeof(void *))
        if grown == NULL:
            return ENOMEM
        s.data = <void **>grown
        s.cap = cap
    if <size_t>fd >= s.top:
        grown = PyMem_RawRealloc(s.places, top * sizeof(size_t))
        if grown == NULL:
            return ENOMEM
        s.places = <size_t *>grown
        for i in range(s.top, top):
            s.places[i] = 0
        s.top = top
    return 0


cdef inline size_t pollset_place(const pollset_t *s, int fd) noexcept nogil:
    return s.places[fd] if 0 <= fd and <size_t>fd < s.top else 0


cdef inline int pollset_add(pollset_t *s, int fd, short events, void *data) noexcept nogil:
    cdef int err
    if fd < 0:
        return EBADF   # poll(2) would ignore it
    if pollset_place(s, fd):
        return EEXIST
    err = pollset_grow(s, fd)
    if err:
        return err
    s.fds[s.count].fd = fd
    s.fds[s.count].events = events
    s.fds[s.count].revents = 0
    s.data[s.count] = data
    s.count += 1
    s.places[fd] = s.count
    return 0


cdef inline int pollset_modify(pollset_t *s, int fd, short events, void *data) noexcept nogil:
    cdef size_t place = pollset_place(s, fd)
    if place == 0:
        return ENOENT
    s.fds[place - 1].events = events
    s.data[place - 1] = data
    return 0


cdef inline int pollset_remove(pollset_t *s, int fd) noexcept nogil:
    cdef size_t place = pollset_place(s, fd)
    if place == 0:
        return ENOENT
    # Move the last one into its place.
    s.count -= 1
    s.fds[place - 1] = s.fds[s.count]
    s.data[place - 1] = s.data[s.count]
    s.places[s.fds[s.count].fd] = place
    s.places[fd] = 0
    return 0


cdef inline int pollset_wait(pollset_t *s, ready_t *ready, int milliseconds, int *err) noexcept nogil:
    cdef int n = 0
    cdef int found = poll(s.fds, <unsigned int>s.count, milliseconds)
    cdef size_t i, place
    if found < 0:
        err[0] = errno
        return -1
    for i in range(s.count):
        if n == found or n == READY_MAX:
            break
        place = (s.next + i) % s.count
        if s.fds[place].revents:
            ready[n].data = s.data[place]
            ready[n].events = s.fds[place].revents
            n += 1
            if n == READY_MAX:
                s.next = place + 1
    return n

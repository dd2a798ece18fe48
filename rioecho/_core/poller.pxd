# Waiting for many descriptors at once: six functions over epoll(7), or over poll(2) on systems without epoll.
#
# Level-triggered: unread input is reported again. The owner registers a pointer with each descriptor, which is returned
# with its events. Events are those of poll(2): POLLIN and POLLOUT on request, POLLERR and POLLHUP always (on Linux the
# flags of epoll have the same values). An owner must remove a descriptor before closing it: epoll watches the open file
# description, which stays open if a forked child has it too, and would still return the pointer.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.errno cimport EBADF, EEXIST, ENOENT, ENOMEM, ENOSYS, errno

from rioecho._core.posix cimport (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    close,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    poll,
    pollfd,
)


cdef enum:
    READY_MAX = 256   # maximum number of descriptors returned by one call


cdef struct ready_t:
    void *data
    short events


cdef struct poller_t:
    int epoll          # the epoll descriptor, or -1 if poll(2) is used, with the fields below
    pollfd *fds        # the descriptors, in no order
    void **data        # the owner's pointer for each
    size_t *places     # for each descriptor its index in fds plus 1, or 0 if it is not watched
    size_t count
    size_t cap         # allocated length of fds and data
    size_t top         # allocated length of places
    size_t next        # index at which the next scan of fds begins, for fairness


cdef inline int poller_create(poller_t *p, bint without_epoll) noexcept nogil:
    """Initialise a poller. Returns 0, or the errno."""
    p.epoll = -1
    p.fds = NULL
    p.data = NULL
    p.places = NULL
    p.count = p.cap = p.top = p.next = 0
    if without_epoll:
        return 0
    p.epoll = epoll_create1(EPOLL_CLOEXEC)
    return 0 if p.epoll >= 0 or errno == ENOSYS else errno


cdef inline void poller_close(poller_t *p) noexcept nogil:
    if p.epoll >= 0:
        close(p.epoll)
    PyMem_RawFree(p.fds)
    PyMem_RawFree(p.data)
    PyMem_RawFree(p.places)
    p.epoll = -1
    p.fds = NULL
    p.data = NULL
    p.places = NULL
    p.count = p.cap = p.top = 0


cdef inline int epoll_change(poller_t *p, int what, int fd, short events, void *data) noexcept nogil:
    cdef epoll_event event
    event.events = <unsigned short>events
    event.data.ptr = data
    return errno if epoll_ctl(p.epoll, what, fd, &event) < 0 else 0


cdef inline int poller_grow(poller_t *p, int fd) noexcept nogil:
    """Make room for descriptor ``fd``. Returns 0, or ENOMEM."""
    cdef size_t cap = max(p.cap * 2, <size_t>16)
    cdef size_t top = max(p.top * 2, <size_t>fd + 1)
    cdef size_t i
    cdef void *grown
    if p.count == p.cap:
        grown = PyMem_RawRealloc(p.fds, cap * sizeof(pollfd))
        if grown == NULL:
            return ENOMEM
        p.fds = <pollfd *>grown
        grown = PyMem_RawRealloc(p.data, cap * sizeof(void *))
        if grown == NULL:
            return ENOMEM
        p.data = <void **>grown
        p.cap = cap
    if <size_t>fd >= p.top:
        grown = PyMem_RawRealloc(p.places, top * sizeof(size_t))
        if grown == NULL:
            return ENOMEM
        p.places = <size_t *>grown
        for i in range(p.top, top):
            p.places[i] = 0
        p.top = top
    return 0


cdef inline size_t poller_place(const poller_t *p, int fd) noexcept nogil:
    return p.places[fd] if 0 <= fd and <size_t>fd < p.top else 0


cdef inline int poller_add(poller_t *p, int fd, short events, void *data) noexcept nogil:
    """Watch a descriptor. Returns 0, or the errno: EEXIST, ENOMEM, or EBADF if it is negative."""
    cdef int err
    if p.epoll >= 0:
        return epoll_change(p, EPOLL_CTL_ADD, fd, events, data)
    if fd < 0:
        return EBADF   # poll(2) would ignore it
    if poller_place(p, fd):
        return EEXIST
    err = poller_grow(p, fd)
    if err:
        return err
    p.fds[p.count].fd = fd
    p.fds[p.count].events = events
    p.fds[p.count].revents = 0
    p.data[p.count] = data
    p.count += 1
    p.places[fd] = p.count
    return 0


cdef inline int poller_modify(poller_t *p, int fd, short events, void *data) noexcept nogil:
    """Change the events and the pointer of a descriptor. Returns 0, or the errno (ENOENT)."""
    cdef size_t place
    if p.epoll >= 0:
        return epoll_change(p, EPOLL_CTL_MOD, fd, events, data)
    place = poller_place(p, fd)
    if place == 0:
        return ENOENT
    p.fds[place - 1].events = events
    p.data[place - 1] = data
    return 0


cdef inline int poller_remove(poller_t *p, int fd) noexcept nogil:
    """Stop watching a descriptor. Returns 0, or the errno (ENOENT). Events that were already returned stay valid."""
    cdef size_t place
    if p.epoll >= 0:
        return epoll_change(p, EPOLL_CTL_DEL, fd, 0, NULL)
    place = poller_place(p, fd)
    if place == 0:
        return ENOENT
    # Move the last one into its place.
    p.count -= 1
    p.fds[place - 1] = p.fds[p.count]
    p.data[place - 1] = p.data[p.count]
    p.places[p.fds[p.count].fd] = place
    p.places[fd] = 0
    return 0


cdef inline int poller_wait(poller_t *p, ready_t *ready, int milliseconds, int *err) noexcept nogil:
    """Wait until a descriptor is ready, for up to ``milliseconds`` (-1 for no limit).

    Stores up to READY_MAX descriptors in ``ready`` and returns their number; 0 after the timeout; -1 with the errno.
    """
    cdef epoll_event events[READY_MAX]
    cdef int n, found
    cdef size_t i, place
    if p.epoll >= 0:
        found = epoll_wait(p.epoll, events, READY_MAX, milliseconds)
        if found < 0:
            err[0] = errno
        for n in range(found):
            ready[n].data = events[n].data.ptr
            ready[n].events = <short>events[n].events
        return found
    found = poll(p.fds, <unsigned int>p.count, milliseconds)
    if found < 0:
        err[0] = errno
        return -1
    n = 0
    for i in range(p.count):
        if n == found or n == READY_MAX:
            break
        place = (p.next + i) % p.count
        if p.fds[place].revents:
            ready[n].data = p.data[place]
            ready[n].events = p.fds[place].revents
            n += 1
            if n == READY_MAX:
                p.next = place + 1
    return n


cdef inline bint poller_broken(const poller_t *p) noexcept nogil:
    """Report whether a wait that has failed, and not by EINTR, will always fail.

    epoll_wait(2) does where somebody has closed its descriptor. poll(2) has an error that passes: no memory in the
    kernel (on macOS EAGAIN), or a limit of descriptors that is lower than their number for the time being (EINVAL).
    """
    return p.epoll >= 0

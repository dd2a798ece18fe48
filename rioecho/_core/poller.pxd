# Waiting for many descriptors at once: six functions over epoll(7), over kqueue(2) on macOS and the BSDs, or over
# poll(2) on systems that have neither.
#
# Level-triggered: unread input is reported again. The owner registers a pointer with each descriptor, which is returned
# with its events, at most once by each wait. Events are those of poll(2): POLLIN and POLLOUT on request, POLLERR and
# POLLHUP always (on Linux the flags of epoll have the same values). kqueue(2) also reports the end of input if nothing
# is requested: as POLLHUP, and once. An owner must remove a descriptor before closing it: epoll watches the open file
# description, which stays open if a forked child has it too, and would still return the pointer.

from libc.errno cimport ENOSYS, errno

from rioecho._core.kqueue cimport (
    kqueue_add,
    kqueue_close,
    kqueue_init,
    kqueue_modify,
    kqueue_open,
    kqueue_remove,
    kqueue_t,
    kqueue_wait,
)
from rioecho._core.pollset cimport (
    pollset_add,
    pollset_close,
    pollset_init,
    pollset_modify,
    pollset_remove,
    pollset_t,
    pollset_wait,
)
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
)
from rioecho._core.ready cimport READY_MAX, ready_t


cdef enum poller_kind:
    POLLER_BEST     # the first of the others that the system has
    POLLER_EPOLL
    POLLER_KQUEUE
    POLLER_POLL


cdef struct poller_t:
    int epoll            # the epoll descriptor, or -1
    kqueue_t kqueue      # used if it has a descriptor and `epoll` is -1
    pollset_t set        # used if neither is


cdef inline poller_kind poller_named(name) except *:
    """Return the kind of poller with a name: "epoll", "kqueue" or "poll"; for None the best one."""
    if name is None:
        return POLLER_BEST
    if name == "epoll":
        return POLLER_EPOLL
    if name == "kqueue":
        return POLLER_KQUEUE
    if name == "poll":
        return POLLER_POLL
    raise ValueError(f"poller must be 'epoll', 'kqueue' or 'poll', not {name!r}")


cdef inline void poller_init(poller_t *p) noexcept nogil:
    """Set the fields, so that the poller can be closed."""
    p.epoll = -1
    kqueue_init(&p.kqueue)
    pollset_init(&p.set)


cdef inline int poller_create(poller_t *p, poller_kind kind) noexcept nogil:
    """Initialise a poller. Returns 0, or the errno: ENOSYS if the system has no poller of this kind."""
    cdef int err = 0
    poller_init(p)
    if kind == POLLER_BEST or kind == POLLER_EPOLL:
        p.epoll = epoll_create1(EPOLL_CLOEXEC)
        if p.epoll >= 0:
            return 0
        err = errno
    if kind == POLLER_KQUEUE or (kind == POLLER_BEST and err == ENOSYS):
        err = kqueue_open(&p.kqueue)
    return 0 if kind == POLLER_BEST and err == ENOSYS else err


cdef inline void poller_close(poller_t *p) noexcept nogil:
    if p.epoll >= 0:
        close(p.epoll)
        p.epoll = -1
    kqueue_close(&p.kqueue)
    pollset_close(&p.set)


cdef inline int epoll_change(poller_t *p, int what, int fd, short events, void *data) noexcept nogil:
    cdef epoll_event event
    event.events = <unsigned short>events
    event.data.ptr = data
    return errno if epoll_ctl(p.epoll, what, fd, &event) < 0 else 0


cdef inline int poller_add(poller_t *p, int fd, short events, void *data) noexcept nogil:
    """Watch a descriptor. Returns 0, or the errno: EEXIST, ENOMEM, or EBADF if it is negative."""
    if p.epoll >= 0:
        return epoll_change(p, EPOLL_CTL_ADD, fd, events, data)
    if p.kqueue.fd >= 0:
        return kqueue_add(&p.kqueue, fd, events, data)
    return pollset_add(&p.set, fd, events, data)


cdef inline int poller_modify(poller_t *p, int fd, short events, void *data) noexcept nogil:
    """Change the events and the pointer of a descriptor. Returns 0, or the errno (ENOENT)."""
    if p.epoll >= 0:
        return epoll_change(p, EPOLL_CTL_MOD, fd, events, data)
    if p.kqueue.fd >= 0:
        return kqueue_modify(&p.kqueue, fd, events, data)
    return pollset_modify(&p.set, fd, events, data)


cdef inline int poller_remove(poller_t *p, int fd) noexcept nogil:
    """Stop watching a descriptor. Returns 0, or the errno (ENOENT). Events that were already returned stay valid."""
    if p.epoll >= 0:
        return epoll_change(p, EPOLL_CTL_DEL, fd, 0, NULL)
    if p.kqueue.fd >= 0:
        return kqueue_remove(&p.kqueue, fd)
    return pollset_remove(&p.set, fd)


cdef inline int poller_wait(poller_t *p, ready_t *ready, int milliseconds, int *err) noexcept nogil:
    """Wait until a descriptor is ready, for up to ``milliseconds`` (-1 for no limit).

    Stores up to READY_MAX descriptors in ``ready`` and returns their number; 0 after the timeout, and with kqueue(2)
    possibly before; -1 with the errno.
    """
    cdef epoll_event events[READY_MAX]
    cdef int n, found
    if p.epoll >= 0:
        found = epoll_wait(p.epoll, events, READY_MAX, milliseconds)
        if found < 0:
            err[0] = errno
        for n in range(found):
            ready[n].data = events[n].data.ptr
            ready[n].events = <short>events[n].events
        return found
    if p.kqueue.fd >= 0:
        return kqueue_wait(&p.kqueue, ready, milliseconds, err)
    return pollset_wait(&p.set, ready, milliseconds, err)


cdef inline bint poller_broken(const poller_t *p) noexcept nogil:
    """Report whether a wait that has failed, and not by EINTR, will always fail.

    epoll_wait(2) and kevent(2) do where somebody has closed their descriptor. poll(2) has an error that passes: no
    memory in the kernel (on macOS EAGAIN), or a limit of descriptors that is lower than their number for the time being
    (EINVAL).
    """
    return p.epoll >= 0 or p.kqueue.fd >= 0

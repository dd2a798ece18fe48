# The poller (_core/poller.pxd) over kqueue(2).
#
# A kqueue has a filter for input and one for output, each with events of its own, and no event that is always reported.
# This file makes of them the events of poll(2), one for each descriptor and wait: an owner may free at the first event
# what a second one would point to. A table holds what is known of each descriptor, since a kqueue neither says that a
# filter was there before it was added, nor changes whether one that is there is edge-triggered.

from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.errno cimport EBADF, EEXIST, ENOENT, ENOMEM, errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

from rioecho._core.posix cimport POLLERR, POLLHUP, POLLIN, POLLOUT, close, getpid
from rioecho._core.ready cimport READY_MAX, ready_t

cdef extern from "rioecho/_core/kqueue.h" nogil:
    struct kevent_t "kevent":
        uintptr_t ident
        short filter
        unsigned short flags
        unsigned int fflags
    int EVFILT_READ
    int EVFILT_WRITE
    int EV_ADD
    int EV_DELETE
    int EV_CLEAR
    int EV_EOF
    void rio_kevent_set(kevent_t *change, int fd, int filter, int flags)
    int rio_kqueue()
    int rio_kevent_change(int kq, const kevent_t *changes, int m)
    int rio_kevent_wait(int kq, kevent_t *events, int n, int milliseconds)


cdef struct watch_t:
    void *data
    uint64_t turn    # the last wait that returned it,
    int at           # and its index there
    short events
    bint watched


cdef struct kqueue_t:
    int fd               # or -1
    int owner            # the process that created it: a forked child does not inherit it, and may reuse its number
    watch_t *watches     # of each descriptor
    size_t top           # allocated length of watches
    uint64_t turn        # number of waits


cdef inline void kqueue_init(kqueue_t *q) noexcept nogil:
    q.fd = -1
    q.watches = NULL
    q.top = 0
    q.turn = 0


cdef inline int kqueue_open(kqueue_t *q) noexcept nogil:
    """Create the kqueue. Returns 0, or the errno (ENOSYS)."""
    q.fd = rio_kqueue()
    if q.fd < 0:
        return errno
    q.owner = getpid()
    return 0


cdef inline void kqueue_close(kqueue_t *q) noexcept nogil:
    if q.fd >= 0 and q.owner == getpid():
        close(q.fd)
    PyMem_RawFree(q.watches)
    kqueue_init(q)


cdef inline watch_t *kqueue_watch(const kqueue_t *q, uintptr_t fd) noexcept nogil:
    """Return what is known of a descriptor, or NULL if it is not watched."""
    return &q.watches[fd] if fd < q.top and q.watches[fd].watched else NULL


cdef inline int filter_for_input(short events) noexcept nogil:
    """Return the flags of the filter for input: 0 if there is none.

    Without a requested event it reports the end of input and errors: edge-triggered, because unread input stays.
    """
    return EV_ADD if events & POLLIN else 0 if events & POLLOUT else EV_ADD | EV_CLEAR


cdef inline int kqueue_change(kqueue_t *q, int fd, int input, int output, int new_input, int new_output) noexcept nogil:
    """Replace the filters of a descriptor, given by their flags. Returns 0, or the errno."""
    cdef kevent_t changes[4]
    cdef int m = 0
    if input != new_input:
        if input:
            rio_kevent_set(&changes[m], fd, EVFILT_READ, EV_DELETE)
            m += 1
        if new_input:
            rio_kevent_set(&changes[m], fd, EVFILT_READ, new_input)
            m += 1
    if output != new_output:
        rio_kevent_set(&changes[m], fd, EVFILT_WRITE, EV_ADD if new_output else EV_DELETE)
        m += 1
    return errno if m and rio_kevent_change(q.fd, changes, m) < 0 else 0


cdef inline int kqueue_add(kqueue_t *q, int fd, short events, void *data) noexcept nogil:
    cdef size_t top = max(q.top * 2, <size_t>fd + 1)
    cdef watch_t *w
    cdef void *grown
    cdef int err
    if fd < 0:
        return EBADF
    if kqueue_watch(q, fd) != NULL:
        return EEXIST
    if <size_t>fd >= q.top:
        grown = PyMem_RawRealloc(q.watches, top * sizeof(watch_t))
        if grown == NULL:
            return ENOMEM
        q.watches = <watch_t *>grown
        memset(q.watches + q.top, 0, (top - q.top) * sizeof(watch_t))
        q.top = top
    err = kqueue_change(q, fd, 0, 0, filter_for_input(events), events & POLLOUT)
    if err:
        kqueue_change(q, fd, filter_for_input(events), events & POLLOUT, 0, 0)   # the one that was added
        return err
    w = &q.watches[fd]
    w.data = data
    w.turn = 0
    w.events = events
    w.watched = True
    return 0


cdef inline int kqueue_modify(kqueue_t *q, int fd, short events, void *data) noexcept nogil:
    cdef watch_t *w = NULL if fd < 0 else kqueue_watch(q, fd)
    cdef short before
    if w == NULL:
        return ENOENT
    before = w.events
    w.events = events
    w.data = data
    return kqueue_change(
        q, fd, filter_for_input(before), before & POLLOUT, filter_for_input(events), events & POLLOUT
    )


cdef inline int kqueue_remove(kqueue_t *q, int fd) noexcept nogil:
    cdef watch_t *w = NULL if fd < 0 else kqueue_watch(q, fd)
    if w == NULL:
        return ENOENT
    w.watched = False
    # One by one: after a change that failed one of them may be missing.
    if w.events & POLLIN or not w.events & POLLOUT:
        kqueue_change(q, fd, EV_ADD, 0, 0, 0)
    if w.events & POLLOUT:
        kqueue_change(q, fd, 0, POLLOUT, 0, 0)
    return 0


cdef inline short kqueue_events(const kevent_t *event, short requested) noexcept nogil:
    """Return the events of poll(2) that one of a kqueue stands for; 0 if it is none of those requested."""
    cdef short events = requested & (POLLIN if event.filter == EVFILT_READ else POLLOUT)
    if not event.flags & EV_EOF:
        return events
    if event.fflags:
        events |= POLLERR
    if event.filter == EVFILT_WRITE or not events:
        events |= POLLHUP   # the end of input is a hang-up only where input was not requested
    return events


cdef inline int kqueue_wait(kqueue_t *q, ready_t *ready, int milliseconds, int *err) noexcept nogil:
    cdef kevent_t found[READY_MAX]
    cdef watch_t *w
    cdef short events
    cdef int i, n = 0
    cdef int count = rio_kevent_wait(q.fd, found, READY_MAX, milliseconds)
    if count < 0:
        err[0] = errno
        return -1
    q.turn += 1
    for i in range(count):
        w = kqueue_watch(q, found[i].ident)
        if w == NULL:
            continue
        events = kqueue_events(&found[i], w.events)
        if events == 0:
            continue
        if w.turn == q.turn:
            ready[w.at].events |= events
            continue
        w.turn = q.turn
        w.at = n
        ready[n].data = w.data
        ready[n].events = events
        n += 1
    return n

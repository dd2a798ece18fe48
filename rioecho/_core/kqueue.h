/* kqueue(2), which macOS and the BSDs have. On other systems these stubs fail with ENOSYS.
 *
 * With RIOECHO_KQUEUE defined, <sys/event.h> is included on any system: libkqueue emulates kqueue on Linux, for tests.
 */
#ifndef RIOECHO_KQUEUE_H
#define RIOECHO_KQUEUE_H

#include "compat.h"

#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) || \
    defined(__DragonFly__) || defined(RIOECHO_KQUEUE)
#include <sys/event.h>

/* Describe one change of the events of a descriptor that `filter` names. */
static inline void rio_kevent_set(struct kevent *change, int fd, int filter, int flags)
{
    EV_SET(change, (uintptr_t)fd, filter, (unsigned short)flags, 0, 0, 0);
}

/* Create a kqueue, close-on-exec. Returns its descriptor, or -1 with errno. */
static inline int rio_kqueue(void)
{
    int fd = kqueue();
    if (fd >= 0)
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

/* Make m changes. Returns 0, or -1 with errno; the changes after the one that failed are not made. */
static inline int rio_kevent_change(int kq, const struct kevent *changes, int m)
{
    return kevent(kq, changes, m, NULL, 0, NULL);
}

/* Wait for up to this many milliseconds; -1 for no limit. Returns the number of events, or -1 with errno. */
static inline int rio_kevent_wait(int kq, struct kevent *events, int n, int milliseconds)
{
    struct timespec limit = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    return kevent(kq, NULL, 0, events, n, milliseconds < 0 ? NULL : &limit);
}
#else
#define EVFILT_READ 0
#define EVFILT_WRITE 1
#define EV_ADD 0
#define EV_DELETE 0
#define EV_CLEAR 0
#define EV_EOF 0
struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
};
static inline void rio_kevent_set(struct kevent *change, int fd, int filter, int flags)
{
    (void)change, (void)fd, (void)filter, (void)flags;
}
static inline int rio_kqueue(void)
{
    errno = ENOSYS;
    return -1;
}
static inline int rio_kevent_change(int kq, const struct kevent *changes, int m)
{
    (void)kq, (void)changes, (void)m;
    errno = ENOSYS;
    return -1;
}
static inline int rio_kevent_wait(int kq, struct kevent *events, int n, int milliseconds)
{
    (void)kq, (void)events, (void)n, (void)milliseconds;
    errno = ENOSYS;
    return -1;
}
#endif

#endif

/* Cleanup in a forked child that does not run Python: reset the signal handlers (Python's own would write to a closed
 * descriptor) and close all descriptors but a few. Only async-signal-safe calls.
 */
#ifndef RIOECHO_FORKED_H
#define RIOECHO_FORKED_H

#include "compat.h"

static inline void rio_child_signals(void)
{
    struct sigaction act, old;
    sigset_t none;
    int number;
    memset(&act, 0, sizeof act);
    sigemptyset(&act.sa_mask);
    for (number = 1; number < NSIG; number++) {
        if (sigaction(number, NULL, &old) < 0 || old.sa_handler == SIG_IGN)
            continue;
        act.sa_handler = number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGPIPE ? SIG_IGN : SIG_DFL;
        (void)sigaction(number, &act, NULL);
    }
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

/* close_range(2) exists since Linux 5.9. Older headers, such as those of the manylinux images, lack its number, which
 * is the same on all architectures but these; they use the slower ways below. */
#if defined(__linux__) && !defined(SYS_close_range) && !defined(__alpha__) && !defined(__ia64__) && \
    !defined(__mips__) && !(defined(__x86_64__) && defined(__ILP32__))
#define SYS_close_range 436
#endif

static inline int rio_close_between(int first, int last)
{
#ifdef SYS_close_range
    return (int)syscall(SYS_close_range, (unsigned)first, (unsigned)last, 0U);
#else
    (void)first, (void)last;
    return -1;
#endif
}

static inline int rio_is_kept(const int *keep, size_t n, int fd)
{
    size_t i;
    for (i = 0; i < n; i++)
        if (keep[i] == fd)
            return 1;
    return 0;
}

/* Close the descriptors listed in /proc, for a process that may not call close_range and has a high descriptor limit.
 * opendir(3) would allocate memory. Returns -1 if there is no list. */
static inline int rio_close_listed(const int *keep, size_t n)
{
#ifdef __linux__
    char entries[4096];
    int list = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long size, at;
    if (list < 0)
        return -1;
    /* The position in the list is the descriptor number, so closing one does not skip another. */
    while ((size = syscall(SYS_getdents64, list, entries, sizeof entries)) > 0)
        for (at = 0; at < size;) {
            /* struct linux_dirent64: inode and offset of 8 bytes each, length of the entry, type, name */
            uint16_t length;
            const char *digit;
            int fd = 0;
            const char *name = entries + at + 19;
            memcpy(&length, entries + at + 16, sizeof length);
            for (digit = name; *digit >= '0' && *digit <= '9'; digit++)
                fd = fd * 10 + (*digit - '0');
            if (digit != name && fd != list && !rio_is_kept(keep, n, fd))
                (void)close(fd);
            at += length;
        }
    (void)close(list);
    return size < 0 ? -1 : 0;
#else
    (void)keep, (void)n;
    return -1;
#endif
}

/* Without either of them, close up to this number, the default of fs.nr_open on Linux. */
#define RIO_MAX_CLOSED (1L << 20)

static inline void rio_close_all_but(const int *keep, size_t n)
{
    long end;
    int fd = 0, failed = 0;
    size_t i;
    for (i = 0; i < n && !failed; i++) {
        failed = keep[i] > fd && rio_close_between(fd, keep[i] - 1) < 0;
        fd = keep[i] + 1;
    }
    if (!failed && rio_close_between(fd, INT_MAX) == 0)
        return;
    if (rio_close_listed(keep, n) == 0)
        return;
    end = sysconf(_SC_OPEN_MAX); /* -1: no limit */
    if (end < 0 || end > RIO_MAX_CLOSED)
        end = RIO_MAX_CLOSED;
    for (fd = 0; fd < end; fd++)
        if (!rio_is_kept(keep, n, fd))
            (void)close(fd);
}

#endif

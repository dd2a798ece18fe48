/* Differences between platforms, and the few functions that can be written only in C.
 *
 * Everything is small, static and inline. What concerns one subject is in a header of its own, which includes this one:
 * sockets.h, memory.h, shared.h (threads), signals.h, forked.h, peers.h, kqueue.h, splice.h.
 */
#ifndef RIOECHO_COMPAT_H
#define RIOECHO_COMPAT_H

#include <Python.h> /* first: it sets the feature macros, including _GNU_SOURCE (memmem, memrchr) */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* Assert an invariant. The debug, sanitizer and race builds define RIOECHO_ASSERT and abort if it is false; others do
 * not evaluate the condition. */
#ifdef RIOECHO_ASSERT
#include <stdlib.h>
#define rio_assert(condition) ((condition) ? (void)0 : rio_assert_failed(#condition, __FILE__, __LINE__))
static inline void rio_assert_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "rioecho: %s:%d: this must hold: %s\n", file, line, condition);
    abort();
}
#else
#define rio_assert(condition) ((void)sizeof((condition) ? 1 : 0)) /* no warnings about unused variables */
#endif

/* The peer has closed its sending side. Only Linux has an event of its own for it. */
#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

/* epoll(7) exists only on Linux. On other systems these stubs fail with ENOSYS, and poll(2) is used. */
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#else
#define EPOLL_CLOEXEC 0
#define EPOLL_CTL_ADD 1
#define EPOLL_CTL_DEL 2
#define EPOLL_CTL_MOD 3
struct epoll_event {
    uint32_t events;
    union {
        void *ptr;
    } data;
};
static inline int epoll_create1(int flags)
{
    (void)flags;
    errno = ENOSYS;
    return -1;
}
static inline int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    (void)epoll, (void)what, (void)fd, (void)event;
    errno = ENOSYS;
    return -1;
}
static inline int epoll_wait(int epoll, struct epoll_event *events, int n, int milliseconds)
{
    (void)epoll, (void)events, (void)n, (void)milliseconds;
    errno = ENOSYS;
    return -1;
}
#endif

/* Create a pipe whose ends are close-on-exec and non-blocking. Returns 0, or -1 with errno. */
static inline int rio_pipe(int *ends)
{
#ifdef __linux__
    return pipe2(ends, O_CLOEXEC | O_NONBLOCK);
#else
    int i;
    if (pipe(ends) < 0)
        return -1;
    for (i = 0; i < 2; i++) {
        (void)fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        (void)fcntl(ends[i], F_SETFL, fcntl(ends[i], F_GETFL) | O_NONBLOCK);
    }
    return 0;
#endif
}

/* Mark a condition as rarely true, so that the compiler moves its code out of the hot path. If it is told that this is
 * certain, it also inlines nothing there, which would count against inlining the same function in the hot path. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9
#define RIO_HAS_PROBABILITY
#elif defined(__has_builtin)
#if __has_builtin(__builtin_expect_with_probability)
#define RIO_HAS_PROBABILITY
#endif
#endif
#ifdef RIO_HAS_PROBABILITY
#define rio_rare(condition) __builtin_expect_with_probability(!!(condition), 0, 1.0)
#else
#define rio_rare(condition) __builtin_expect(!!(condition), 0)
#endif

/* Return the value of an int, an exact one. -1 may be an error, with an exception set, as of PyLong_AsSsize_t(), which
 * takes a multiple of the time for the sizes that calls usually have: those of one digit. */
static inline Py_ssize_t rio_int_value(PyObject *exact)
{
    PyLongObject *n = (PyLongObject *)exact;
#if PY_VERSION_HEX >= 0x030C0000
    if (PyUnstable_Long_IsCompact(n))
        return PyUnstable_Long_CompactValue(n);
#else
    if (Py_SIZE(n) == 1)
        return (Py_ssize_t)n->ob_digit[0];
#endif
    return PyLong_AsSsize_t(exact);
}

static inline void rio_set_errno(int err)
{
    errno = err; /* Cython can read errno but not set it */
}

static inline int64_t rio_monotonic_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail with this clock */
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Return the CPU time of the calling thread in nanoseconds. */
static inline int64_t rio_thread_ns(void)
{
    struct timespec used;
    return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used) ? 0 : (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

/* Report whether a read(2) that returned 0 found no data rather than EOF.
 *
 * A terminal that is not in canonical mode returns 0 because of VMIN = 0; its end is a hang-up. A FIFO returns 0
 * until it is opened for writing; poll(2) reports a hang-up only after a writer has closed it. */
static inline int rio_nothing_yet(int fd)
{
    static const short over = POLLHUP | POLLERR | POLLNVAL;
    struct pollfd p = {fd, POLLIN, 0};
    struct termios settings;
    struct stat status;
    int waiting = 0, terminal = tcgetattr(fd, &settings) == 0;
    if (terminal ? settings.c_lflag & ICANON : fstat(fd, &status) < 0 || !S_ISFIFO(status.st_mode))
        return 0;
    if (poll(&p, 1, 0) < 0 && errno != EINTR) /* a pending signal interrupts it only if there are no events */
        return 0;
    if (ioctl(fd, FIONREAD, &waiting) == 0 && waiting > 0)
        return 1; /* data has arrived since */
    return terminal ? !(p.revents & over) : p.revents == 0;
}

/* Report whether a read(2) that failed with EIO found the end of a terminal: a hang-up, or, on the master side of a pty, a
 * closed slave side. A background process that may not read its terminal gets EIO too. */
static inline int rio_hung_up(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
#ifdef TIOCGPTN
    unsigned int number;
    if (ioctl(fd, TIOCGPTN, &number) == 0)
        return 1; /* even if the slave side has been opened again since */
#endif
    return poll(&p, 1, 0) > 0 && p.revents & POLLHUP;
}

static inline int rio_bit_length(uint64_t n) /* n > 0 */
{
    return 64 - __builtin_clzll(n);
}

/* Wait until the descriptor is readable, for up to ns nanoseconds. Without ppoll(2) the wait may end up to one
 * millisecond too early. */
static inline void rio_wait_ns(int fd, int64_t ns)
{
    struct pollfd p = {fd, POLLIN, 0};
#ifdef __linux__
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    (void)ppoll(&p, 1, &left, NULL);
#else
    (void)poll(&p, 1, (int)(ns / 1000000));
#endif
}

/* Minimise this thread's timer slack (50 us by default on Linux); 0 restores it. */
static inline void rio_wake_exactly(int on)
{
#ifdef PR_SET_TIMERSLACK
    (void)prctl(PR_SET_TIMERSLACK, on ? 1UL : 0UL, 0UL, 0UL, 0UL); /* 0 selects the default */
#else
    (void)on;
#endif
}

#endif

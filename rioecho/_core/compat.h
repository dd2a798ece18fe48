/* Where the platforms differ, and the few things that only C can say: one place, chosen by the preprocessor.
 *
 * Everything here is small, static and inline. No buffer, no policy: those are _core/buffer.pxd and _core/fdio.pxd.
 */
#ifndef RIOECHO_COMPAT_H
#define RIOECHO_COMPAT_H

#include <Python.h> /* first: it sets the feature macros, _GNU_SOURCE (memmem, memrchr) among them */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* An invariant. The debug and the sanitizer builds define RIOECHO_ASSERT and end at one that does not hold; elsewhere
 * the condition is not evaluated. */
#ifdef RIOECHO_ASSERT
#include <stdio.h>
#include <stdlib.h>
#define rio_assert(condition) ((condition) ? (void)0 : rio_assert_failed(#condition, __FILE__, __LINE__))
static inline void rio_assert_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "rioecho: %s:%d: this must hold: %s\n", file, line, condition);
    abort();
}
#else
#define rio_assert(condition) ((void)(0 && (condition)))
#endif

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* Linux stops SIGPIPE per call, macOS per socket (set once, by rio_no_sigpipe). */
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

static inline void rio_no_sigpipe(int fd)
{
#ifdef SO_NOSIGPIPE
    int on = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#else
    (void)fd;
#endif
}

/* The peer has ended its side. Elsewhere than on Linux it is not told of by itself. */
#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

/* GNU's, and since 2024 POSIX's; macOS has none. */
#ifdef __APPLE__
static inline void *memrchr(const void *data, int byte, size_t n)
{
    const unsigned char *p = (const unsigned char *)data + n;
    while (p != (const unsigned char *)data)
        if (*--p == (unsigned char)byte)
            return (void *)p;
    return NULL;
}
#endif

/* epoll(7) is Linux's. Elsewhere there is none to be had, and poll(2) is used. */
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

/* Whole pages of memory, which the system has back at once: what malloc frees below the top of its heap it keeps.
 * RIO_MAPPED(n): from how many bytes on they are used; AddressSanitizer watches malloc's memory only. */
#ifdef __SANITIZE_ADDRESS__
#define RIO_MAPPED(n) SIZE_MAX
#else
#define RIO_MAPPED(n) ((size_t)(n))
#endif

static inline char *rio_pages_get(size_t n)
{
    void *data = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : (char *)data;
}

static inline void rio_pages_give(char *data, size_t n)
{
    (void)munmap(data, n);
}

/* NULL: no memory, and the old pages are as they were. */
static inline char *rio_pages_resize(char *data, size_t before, size_t n)
{
#ifdef MREMAP_MAYMOVE /* Linux: no byte is copied */
    void *moved = mremap(data, before, n, MREMAP_MAYMOVE);
    return moved == MAP_FAILED ? NULL : (char *)moved;
#else
    char *moved = rio_pages_get(n);
    if (moved != NULL) {
        memcpy(moved, data, before < n ? before : n);
        rio_pages_give(data, before);
    }
    return moved;
#endif
}

/* A condition of which the compiler is told that it hardly ever holds: what follows is kept out of the way. */
#define rio_rare(condition) __builtin_expect(!!(condition), 0)

static inline void rio_set_errno(int err)
{
    errno = err; /* Cython can read errno, and has no word for setting it */
}

static inline int64_t rio_monotonic_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail with this clock */
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* write(2) has no MSG_NOSIGNAL, and OpenSSL uses write(2). SIGPIPE is sent to the thread that wrote, so it is blocked
 * there, and taken back if it was not pending before: so it is what happened in between that raised it. */
typedef struct {
    sigset_t before;
    int was_pending;
} rio_sigpipe;

static inline void rio_sigpipe_block(rio_sigpipe *s)
{
    sigset_t pipe_only, pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    s->was_pending = sigismember(&pending, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &s->before);
}

static inline void rio_sigpipe_restore(const rio_sigpipe *s)
{
    sigset_t pipe_only, pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    if (!s->was_pending && sigismember(&pending, SIGPIPE)) { /* not so where it is ignored */
#ifdef __APPLE__
        int ignored;
        sigwait(&pipe_only, &ignored);
#else
        const struct timespec at_once = {0, 0}; /* another thread may have taken it: one sent to the process */
        sigtimedwait(&pipe_only, NULL, &at_once);
#endif
    }
    pthread_sigmask(SIG_SETMASK, &s->before, NULL);
}

/* Not inline: it would keep fd_write(), of which it is the rare half, from being so. */
__attribute__((noinline, unused)) static ssize_t rio_write_no_sigpipe(int fd, const void *data, size_t n)
{
    rio_sigpipe guard;
    ssize_t written;
    int saved;
    rio_sigpipe_block(&guard);
    written = write(fd, data, n);
    saved = errno;
    rio_sigpipe_restore(&guard);
    errno = saved;
    return written;
}

/* All signals held back in this thread, and let in again. See Rio's TLS functions for why. */
static inline void rio_signals_hold(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

static inline void rio_signals_release(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* Bytes that were written and the other side has not acknowledged, or taken from its tty; -1: nobody can say. */
static inline int rio_unacknowledged(int fd)
{
    int n;
#if defined(SO_NWRITE) /* macOS */
    socklen_t size = sizeof n;
    return getsockopt(fd, SOL_SOCKET, SO_NWRITE, &n, &size) == 0 ? n : -1;
#elif defined(FIONWRITE) /* the BSDs */
    return ioctl(fd, FIONWRITE, &n) == 0 ? n : -1;
#elif defined(TIOCOUTQ) /* SIOCOUTQ of Linux is the same number: tcp(7) */
    return ioctl(fd, TIOCOUTQ, &n) == 0 ? n : -1;
#else
    (void)fd, (void)n;
    return -1;
#endif
}

/* Linux reports the end of input on the master side of a pty as EIO; the BSDs report the end of input. */
static inline int rio_is_pty_master(int fd)
{
#ifdef TIOCGPTN
    unsigned int number;
    return ioctl(fd, TIOCGPTN, &number) == 0;
#else
    (void)fd;
    return 0;
#endif
}

/* Why a socket is broken, or 0; asking resets it. */
static inline int rio_socket_error(int fd)
{
    int err = 0;
    socklen_t size = sizeof err;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size) == 0 ? err : errno;
}

/* Numbers that several threads, or processes over shared memory, add to and read. Adding returns the sum. */
static inline uint64_t rio_atomic_add(uint64_t *count, uint64_t n)
{
    return __atomic_add_fetch(count, n, __ATOMIC_SEQ_CST);
}

/* Set a number that is 0; return whether this caller did. */
static inline int rio_atomic_claim(uint64_t *count, uint64_t n)
{
    uint64_t expected = 0;
    return __atomic_compare_exchange_n(count, &expected, n, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static inline uint64_t rio_atomic_load(const uint64_t *count)
{
    return __atomic_load_n(count, __ATOMIC_SEQ_CST);
}

/* The same where one thread alone writes: as cheap as a plain addition, and never half done for those who read. */
static inline uint64_t rio_load_relaxed(const uint64_t *count)
{
    return __atomic_load_n(count, __ATOMIC_RELAXED);
}

static inline void rio_store_relaxed(uint64_t *count, uint64_t n)
{
    __atomic_store_n(count, n, __ATOMIC_RELAXED);
}

static inline void rio_add_relaxed(uint64_t *count, uint64_t n)
{
    rio_store_relaxed(count, rio_load_relaxed(count) + n);
}

static inline int rio_bit_length(uint64_t n) /* n > 0 */
{
    return 64 - __builtin_clzll(n);
}

static inline void rio_bool_set(int *flag, int value)
{
    __atomic_store_n(flag, value, __ATOMIC_SEQ_CST);
}

static inline int rio_bool_get(const int *flag)
{
    return __atomic_load_n(flag, __ATOMIC_SEQ_CST);
}

/* Wait until the descriptor is readable or so many nanoseconds have gone by; where only milliseconds can be asked for
 * it may be done up to one of them too soon. */
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

/* Have this thread's waits end when they should: Linux may add 50 us to each, to save power. Off: as it was by default. */
static inline void rio_wake_exactly(int on)
{
#ifdef PR_SET_TIMERSLACK
    (void)prctl(PR_SET_TIMERSLACK, on ? 1UL : 0UL, 0UL, 0UL, 0UL); /* 0: the default */
#else
    (void)on;
#endif
}

/* What a child that will never run Python again has to undo of its parent, which ran it: every handler (Python's own
 * would write to a descriptor that is not there any more), and every descriptor but those in `keep`, ascending. */
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
        act.sa_handler = number == SIGINT || number == SIGTERM || number == SIGPIPE ? SIG_IGN : SIG_DFL;
        (void)sigaction(number, &act, NULL);
    }
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static inline void rio_close_all_but(const int *keep, size_t n)
{
    long end = sysconf(_SC_OPEN_MAX);
    int fd = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        for (; fd < keep[i]; fd++)
            (void)close(fd);
        fd = keep[i] + 1;
    }
#if defined(__linux__) && defined(SYS_close_range)
    if (syscall(SYS_close_range, (unsigned)fd, ~0U, 0U) == 0)
        return;
#endif
    for (; fd < end; fd++)
        (void)close(fd);
}

/* Cut a bytes object that nobody else has seen to its first n bytes, in place: it may have moved. NULL: no memory, and
 * it is as it was (_PyBytes_Resize would have freed it). */
static inline PyObject *rio_bytes_cut(PyObject *bytes, Py_ssize_t n)
{
#ifdef Py_TRACE_REFS
    (void)bytes, (void)n; /* such a build keeps all objects in a list: one must not move */
    return NULL;
#else
    PyObject *cut = (PyObject *)PyObject_Realloc(bytes, offsetof(PyBytesObject, ob_sval) + (size_t)n + 1);
    if (cut != NULL) {
        Py_SET_SIZE((PyVarObject *)cut, n);
        PyBytes_AS_STRING(cut)[n] = '\0';
    }
    return cut;
#endif
}

/* A flag that one caller at a time can take. With the GIL, whoever looks at it holds the GIL. */
#define RIO_FREE 0
#define RIO_TAKEN 1
#define RIO_CLOSED 2

static inline int rio_flag_take(int *flag)
{
#ifdef Py_GIL_DISABLED
    int expected = RIO_FREE;
    return __atomic_compare_exchange_n(flag, &expected, RIO_TAKEN, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
#else
    if (*flag != RIO_FREE)
        return 0;
    *flag = RIO_TAKEN;
    return 1;
#endif
}

static inline void rio_flag_put(int *flag, int state)
{
#ifdef Py_GIL_DISABLED
    __atomic_store_n(flag, state, __ATOMIC_RELEASE);
#else
    *flag = state;
#endif
}

static inline int rio_flag_state(int *flag)
{
#ifdef Py_GIL_DISABLED
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
#else
    return *flag;
#endif
}

#endif

/* Differences between platforms, and the few functions that can be written only in C.
 *
 * Everything is small, static and inline. Buffers are in _core/buffer.pxd, descriptors in _core/fdio.pxd.
 */
#ifndef RIOECHO_COMPAT_H
#define RIOECHO_COMPAT_H

#include <Python.h> /* first: it sets the feature macros, including _GNU_SOURCE (memmem, memrchr) */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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
#include <sys/uio.h>
#include <sys/wait.h>
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

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* Linux suppresses SIGPIPE per call, macOS per socket (set once, by rio_no_sigpipe). */
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

/* The peer has closed its sending side. Only Linux has an event of its own for it. */
#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

/* Find the last byte of this value, as memrchr(3) does, which not every system has. */
static inline const void *rio_memrchr(const void *data, int byte, size_t n)
{
#ifdef __linux__
    return memrchr(data, byte, n);
#else
    const unsigned char *p = (const unsigned char *)data + n;
    while (p != (const unsigned char *)data)
        if (*--p == (unsigned char)byte)
            return p;
    return NULL;
#endif
}

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

/* Accept a connection, close-on-exec, with TCP_NODELAY. Returns its descriptor, or -1 with errno. macOS rejects the
 * option if the client has already disconnected; the first read will report that. */
static inline int rio_accept(int listener, struct sockaddr_storage *peer)
{
    socklen_t length = sizeof *peer;
    int on = 1, fd;
    memset(peer, 0, sizeof *peer);
#ifdef __linux__
    fd = accept4(listener, (struct sockaddr *)peer, &length, SOCK_CLOEXEC);
#else
    fd = accept(listener, (struct sockaddr *)peer, &length);
    if (fd >= 0)
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
    if (fd >= 0 && peer->ss_family != AF_UNIX)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* Format the numeric address of a TCP peer as "(HOST, PORT)"; "(unix socket)" for others. */
static inline void rio_peer_name(const struct sockaddr_storage *peer, char *text, size_t n)
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (peer->ss_family == AF_INET) {
        const struct sockaddr_in *ip = (const struct sockaddr_in *)peer;
        (void)inet_ntop(AF_INET, &ip->sin_addr, host, sizeof host);
        (void)snprintf(text, n, "(%s, %u)", host, (unsigned)ntohs(ip->sin_port));
    } else if (peer->ss_family == AF_INET6) {
        const struct sockaddr_in6 *ip = (const struct sockaddr_in6 *)peer;
        (void)inet_ntop(AF_INET6, &ip->sin6_addr, host, sizeof host);
        (void)snprintf(text, n, "(%s, %u)", host, (unsigned)ntohs(ip->sin6_port));
    } else {
        (void)snprintf(text, n, "(unix socket)");
    }
}

/* Return the number of connections in the listen queue of a TCP socket; -1 if the system does not provide it. */
static inline int rio_listen_queue(int listener)
{
#if defined(__linux__) && defined(TCP_INFO)
    struct tcp_info info;
    socklen_t size = sizeof info;
    memset(&info, 0, sizeof info);
    if (getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &size) == 0)
        return (int)info.tcpi_unacked; /* for a listening socket: number of connections to accept */
#else
    (void)listener;
#endif
    return -1;
}

/* Memory mapped in whole pages. Freeing it returns it to the system at once, whereas malloc keeps what is freed below
 * the top of its heap. RIO_MAPPED(n) is the minimum size in bytes to map: with AddressSanitizer, which checks only
 * malloc's memory, nothing is mapped. */
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

/* Resize a mapping. Returns NULL, with the mapping unchanged, if there is no memory. */
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

/* Mark a condition as rarely true, so that the compiler moves its code out of the hot path. */
#define rio_rare(condition) __builtin_expect(!!(condition), 0)

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

/* write(2), which OpenSSL uses too, has no MSG_NOSIGNAL. SIGPIPE is sent to the writing thread, so it is blocked there
 * during the write and then consumed, unless it was pending before. */
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
    if (!s->was_pending && sigismember(&pending, SIGPIPE)) { /* an ignored signal is never pending */
#ifdef __APPLE__
        int ignored;
        sigwait(&pipe_only, &ignored);
#else
        const struct timespec at_once = {0, 0}; /* another thread may have consumed it, if it was sent to the process */
        sigtimedwait(&pipe_only, NULL, &at_once);
#endif
    }
    pthread_sigmask(SIG_SETMASK, &s->before, NULL);
}

/* Not inline: the compiler would then not inline fd_write(), which rarely calls it. */
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

/* Block all signals in this thread, until rio_signals_release. _rio/tls.pyx gives the reason. */
static inline void rio_signals_hold(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

/* Block all signals but those that a fault of the thread itself raises, which debuggers and faulthandler need. */
static inline void rio_signals_hold_sent(sigset_t *before)
{
    static const int own[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
    sigset_t sent;
    size_t i;
    sigfillset(&sent);
    for (i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&sent, own[i]);
    pthread_sigmask(SIG_BLOCK, &sent, before);
}

static inline void rio_signals_release(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* Return the number of written bytes that the peer has not acknowledged (or a tty has not sent); -1 if unknown. */
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

/* Report whether a socket that poll(2) reports as writable has room for n bytes. Linux reports it when a third of the send
 * buffer is free, of which bookkeeping takes a part; other systems when there is room for a few bytes. */
static inline int rio_room_for(int fd, size_t n)
{
#ifdef __linux__
    int size = 0;
    socklen_t length = sizeof size;
    return getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length) == 0 && size > 0 && n <= (size_t)size / 6;
#else
    (void)fd, (void)n;
    return 0;
#endif
}

/* Report whether a descriptor is the master side of a pty. Linux reports EOF there as EIO; the BSDs report EOF. */
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

/* Return and clear the pending error of a socket, or 0. */
static inline int rio_socket_error(int fd)
{
    int err = 0;
    socklen_t size = sizeof err;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size) == 0 ? err : errno;
}

/* Counters that several threads, or processes with shared memory, update and read. Adding returns the sum. */
static inline uint64_t rio_atomic_add(uint64_t *count, uint64_t n)
{
    return __atomic_add_fetch(count, n, __ATOMIC_SEQ_CST);
}

/* Set a counter to n if it is 0. Reports whether it was. */
static inline int rio_atomic_claim(uint64_t *count, uint64_t n)
{
    uint64_t expected = 0;
    return __atomic_compare_exchange_n(count, &expected, n, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static inline uint64_t rio_atomic_load(const uint64_t *count)
{
    return __atomic_load_n(count, __ATOMIC_SEQ_CST);
}

/* Counters that only one thread writes: as cheap as a plain addition, and readers never see a partial update. */
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

/* Bytes objects as memory: a result is filled before anybody sees it. Its only reference is then represented by the
 * address of its bytes, which these functions take and return. They need the GIL. */

static inline PyObject *rio_bytes_object(char *data)
{
    return (PyObject *)(data - offsetof(PyBytesObject, ob_sval));
}

/* Release the object. */
static inline void rio_bytes_give(char *data)
{
    Py_DECREF(rio_bytes_object(data));
}

/* Truncate the object to n bytes without resizing its memory. */
static inline void rio_bytes_end(char *data, Py_ssize_t n)
{
    Py_SET_SIZE((PyVarObject *)rio_bytes_object(data), n);
    data[n] = '\0';
}

/* Resize the object to n bytes. Returns the new address; NULL, with the object unchanged, if there is no memory
 * (_PyBytes_Resize would free it). */
static inline char *rio_bytes_resize(char *data, Py_ssize_t n)
{
#ifdef Py_TRACE_REFS
    (void)data, (void)n; /* this build keeps all objects in a list, so they must not move */
    return NULL;
#else
    size_t size = offsetof(PyBytesObject, ob_sval) + (size_t)n + 1;
    PyObject *resized = (PyObject *)PyObject_Realloc(rio_bytes_object(data), size);
    if (resized == NULL)
        return NULL;
    data = PyBytes_AS_STRING(resized);
    rio_bytes_end(data, n);
    return data;
#endif
}

/* Return an identifier of the calling thread, unique among running threads and unchanged in the child of a fork. */
static inline uintptr_t rio_this_thread(void)
{
#if defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
    return (uintptr_t)__builtin_thread_pointer();
#else
    return (uintptr_t)pthread_self();
#endif
}

/* A flag that one caller at a time can take: a lock without waiting, which records its holder. Its value is the thread
 * identifier of the holder or one of these states. In builds with the GIL, every user holds the GIL. */
#define RIO_FREE ((uintptr_t)0)
#define RIO_CLOSED ((uintptr_t)1) /* final */
#define RIO_LOST ((uintptr_t)2)   /* final: the holder does not exist in this child of a fork, and the guarded state may
                                     be inconsistent */

typedef struct {
    uintptr_t holder;
} rio_flag;

#ifdef Py_GIL_DISABLED
#define RIO_HAS_GIL 0
#else
#define RIO_HAS_GIL 1
#endif

static inline uintptr_t rio_flag_state(const rio_flag *flag)
{
#ifdef Py_GIL_DISABLED
    return __atomic_load_n(&flag->holder, __ATOMIC_ACQUIRE);
#else
    return flag->holder;
#endif
}

static inline int rio_flag_take(rio_flag *flag)
{
#ifdef Py_GIL_DISABLED
    uintptr_t expected = RIO_FREE;
    return __atomic_compare_exchange_n(
        &flag->holder, &expected, rio_this_thread(), 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
#else
    if (flag->holder != RIO_FREE)
        return 0;
    flag->holder = rio_this_thread();
    return 1;
#endif
}

/* Release the flag: set it to RIO_FREE or RIO_CLOSED. For its holder only. */
static inline void rio_flag_put(rio_flag *flag, uintptr_t state)
{
    rio_assert(flag->holder == rio_this_thread());
#ifdef Py_GIL_DISABLED
    __atomic_store_n(&flag->holder, state, __ATOMIC_RELEASE);
#else
    flag->holder = state;
#endif
}

/* Take and release a flag for a few instructions that run no Python code: with the GIL, checking that it is free is
 * enough. */
static inline int rio_flag_take_briefly(rio_flag *flag)
{
    return RIO_HAS_GIL ? rio_flag_state(flag) == RIO_FREE : rio_flag_take(flag);
}

static inline void rio_flag_put_briefly(rio_flag *flag)
{
    if (!RIO_HAS_GIL)
        rio_flag_put(flag, RIO_FREE);
}

static inline int rio_flag_closed(const rio_flag *flag)
{
    return rio_flag_state(flag) == RIO_CLOSED;
}

/* Report whether this thread holds the flag, in a call that a signal handler, a finalizer or a fileno() interrupted. */
static inline int rio_flag_mine(const rio_flag *flag)
{
    return rio_flag_state(flag) == rio_this_thread();
}

/* Set the state of a flag that another thread held, in the child of a fork, which has only the calling thread. */
static inline void rio_flag_orphan(rio_flag *flag, uintptr_t state)
{
    if (flag->holder > RIO_LOST && flag->holder != rio_this_thread())
        flag->holder = state;
}

/* A lock for a few instructions that run no Python code. With the GIL it is empty: the GIL is the lock. */
#ifdef Py_GIL_DISABLED
typedef PyMutex rio_mutex;
#define rio_mutex_lock(mutex) PyMutex_Lock(mutex)
#define rio_mutex_unlock(mutex) PyMutex_Unlock(mutex)
#else
typedef char rio_mutex;
#define rio_mutex_lock(mutex) ((void)(mutex))
#define rio_mutex_unlock(mutex) ((void)(mutex))
#endif

/* Values that one thread writes under a lock and others read as a hint. */
static inline int64_t rio_time_get(const int64_t *ns)
{
    return __atomic_load_n(ns, __ATOMIC_RELAXED);
}

static inline void rio_time_set(int64_t *ns, int64_t value)
{
    __atomic_store_n(ns, value, __ATOMIC_RELAXED);
}

static inline uintptr_t rio_thread_get(const uintptr_t *thread)
{
    return __atomic_load_n(thread, __ATOMIC_ACQUIRE);
}

static inline void rio_thread_set(uintptr_t *thread, uintptr_t value)
{
    __atomic_store_n(thread, value, __ATOMIC_RELEASE);
}

static inline size_t rio_size_get(const size_t *n)
{
    return __atomic_load_n(n, __ATOMIC_RELAXED);
}

static inline void rio_size_set(size_t *n, size_t value)
{
    __atomic_store_n(n, value, __ATOMIC_RELAXED);
}

#endif

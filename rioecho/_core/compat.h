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

/* Set TCP_NODELAY and SO_KEEPALIVE of a TCP connection. macOS rejects them if the client has already disconnected; the
 * first read will report that. */
static inline void rio_set_up_connection(int fd)
{
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

/* Accept a connection, close-on-exec, and set it up. Returns its descriptor, or -1 with errno. */
static inline int rio_accept(int listener, struct sockaddr_storage *peer)
{
    socklen_t length = sizeof *peer;
    int fd;
    memset(peer, 0, sizeof *peer);
#ifdef __linux__
    fd = accept4(listener, (struct sockaddr *)peer, &length, SOCK_CLOEXEC);
#else
    fd = accept(listener, (struct sockaddr *)peer, &length);
    if (fd >= 0)
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
    if (fd >= 0 && peer->ss_family != AF_UNIX)
        rio_set_up_connection(fd);
    return fd;
}

/* Set up a connection that another process has accepted as rio_accept() does, and get the address of its peer, which is
 * unknown (AF_UNSPEC) if the connection is already lost. */
static inline void rio_adopt(int fd, struct sockaddr_storage *peer)
{
    socklen_t length = sizeof *peer;
    memset(peer, 0, sizeof *peer);
    if (getpeername(fd, (struct sockaddr *)peer, &length) < 0)
        memset(peer, 0, sizeof *peer);
    if (peer->ss_family == AF_INET || peer->ss_family == AF_INET6)
        rio_set_up_connection(fd);
}

/* Format the numeric address of a TCP peer as "(HOST, PORT)", a link-local one with its interface; "(unix socket)" for
 * others. */
static inline void rio_peer_name(const struct sockaddr_storage *peer, char *text, size_t n)
{
    char host[INET6_ADDRSTRLEN] = "?", scope[IF_NAMESIZE + 1] = "";
    if (peer->ss_family == AF_INET) {
        const struct sockaddr_in *ip = (const struct sockaddr_in *)peer;
        (void)inet_ntop(AF_INET, &ip->sin_addr, host, sizeof host);
        (void)snprintf(text, n, "(%s, %u)", host, (unsigned)ntohs(ip->sin_port));
    } else if (peer->ss_family == AF_INET6) {
        const struct sockaddr_in6 *ip = (const struct sockaddr_in6 *)peer;
        (void)inet_ntop(AF_INET6, &ip->sin6_addr, host, sizeof host);
        if (ip->sin6_scope_id) {
            scope[0] = '%';
            if (if_indextoname(ip->sin6_scope_id, scope + 1) == NULL)
                (void)snprintf(scope + 1, sizeof scope - 1, "%u", (unsigned)ip->sin6_scope_id);
        }
        (void)snprintf(text, n, "(%s%s, %u)", host, scope, (unsigned)ntohs(ip->sin6_port));
    } else if (peer->ss_family == AF_UNSPEC) {
        (void)snprintf(text, n, "(unknown)");
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
#define RIO_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) /* clang */
#define RIO_ADDRESS_SANITIZER
#endif
#endif
#ifdef RIO_ADDRESS_SANITIZER
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

/* Return how many of n bytes, with the overhead of a TLS record, a socket that poll(2) reports as writable surely takes at
 * once; 0 if unknown. Linux reports it when a third of the send buffer is free, of which bookkeeping takes a part; other
 * systems when there is room for a few bytes. No send buffer of Linux is smaller than 4608 bytes. */
static inline size_t rio_sure_room(int fd, size_t n)
{
#ifdef __linux__
    int size = 0;
    socklen_t length = sizeof size;
    if (n <= 4608 / 6)
        return n;
    if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length) == 0 && size > 0)
        return n <= (size_t)size / 6 ? n : (size_t)size / 6;
#else
    (void)fd, (void)n;
#endif
    return 0;
}

#ifdef __linux__
#define RIO_ROOM_KNOWN 1
#else
#define RIO_ROOM_KNOWN 0
#endif

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

/* Return the type of a socket: SOCK_STREAM, SOCK_DGRAM, ...; -1 on an error. */
static inline int rio_socket_type(int fd)
{
    int type;
    socklen_t size = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 ? type : -1;
}

/* Return the limit in nanoseconds that a socket has in the kernel for each wait: SO_SNDTIMEO, or SO_RCVTIMEO if not
 * sending. Returns -1 if it has none, and for any other descriptor. */
static inline int64_t rio_socket_limit_ns(int fd, int sending)
{
    struct timeval limit = {0, 0};
    socklen_t size = sizeof limit;
    if (getsockopt(fd, SOL_SOCKET, sending ? SO_SNDTIMEO : SO_RCVTIMEO, &limit, &size) < 0 ||
        (limit.tv_sec == 0 && limit.tv_usec == 0))
        return -1;
    if (limit.tv_sec >= INT64_MAX / 1000000000)
        return INT64_MAX;
    return (int64_t)limit.tv_sec * 1000000000 + (int64_t)limit.tv_usec * 1000;
}

/* Have close(2) reset the connection, and drop what is not sent. */
static inline void rio_reset_at_close(int fd)
{
    struct linger now = {1, 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

/* Return and clear the pending error of a socket, or 0. */
static inline int rio_socket_error(int fd)
{
    int err = 0;
    socklen_t size = sizeof err;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size) == 0 ? err : errno;
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

#endif

/* Sockets: what differs between systems, what is set once for a connection, and the questions that getsockopt(2) and
 * ioctl(2) answer.
 */
#ifndef RIOECHO_SOCKETS_H
#define RIOECHO_SOCKETS_H

#include "compat.h"

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

#endif

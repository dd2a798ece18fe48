/* The functions of the C library that the loop and the accept loop call. While a history runs, descriptors from FIRST_FD
 * on and the monotonic clock are those of the model; everything else is passed on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

#define REAL(name) \
    static __typeof__(&name) real; \
    if (real == NULL) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define IS_MODELLED(fd) (history_on && (fd) >= FIRST_FD && call_begin() == 0)

static struct client *conn_of(int fd, const char *call)
{
    struct file *f = file_of(fd, call);
    if (f->kind != CONN)
        broken("%s() of descriptor %d, which is no connection", call, fd);
    return f->client;
}

/* ---- the clock */

int clock_gettime(clockid_t clock, struct timespec *time)
{
    REAL(clock_gettime);
    if (!history_on || clock != CLOCK_MONOTONIC)
        return real(clock, time);
    if (this_thread == LOOP && is_turn_new) {
        is_turn_new = 0;
        turn_at = now;
    }
    time->tv_sec = now / SECOND;
    time->tv_nsec = now % SECOND;
    return 0;
}

/* ---- bytes */

ssize_t read(int fd, void *data, size_t n)
{
    REAL(read);
    return IS_MODELLED(fd) ? pipe_read(file_of(fd, "read"), data, n) : real(fd, data, n);
}

ssize_t write(int fd, const void *data, size_t n)
{
    REAL(write);
    return IS_MODELLED(fd) ? pipe_write(file_of(fd, "write"), data, n) : real(fd, data, n);
}

ssize_t recv(int fd, void *data, size_t n, int flags)
{
    REAL(recv);
    if (!IS_MODELLED(fd))
        return real(fd, data, n, flags);
    if (flags == (MSG_DONTWAIT | MSG_PEEK))
        return conn_peek(conn_of(fd, "recv"), data, n);
    if (flags != MSG_DONTWAIT)
        broken("recv() with the flags %#x", flags);
    return conn_receive(conn_of(fd, "recv"), data, n);
}

static void check_flags(int flags)
{
    if (flags != (MSG_DONTWAIT | MSG_NOSIGNAL))
        broken("send() with the flags %#x", flags);
}

ssize_t send(int fd, const void *data, size_t n, int flags)
{
    REAL(send);
    if (!IS_MODELLED(fd))
        return real(fd, data, n, flags);
    check_flags(flags);
    return conn_send(conn_of(fd, "send"), data, n, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    const struct iovec *parts = message->msg_iov;
    if (!IS_MODELLED(fd))
        return real(fd, message, flags);
    check_flags(flags);
    if (message->msg_iovlen != 2)
        broken("sendmsg() with %zu parts", (size_t)message->msg_iovlen);
    return conn_send(conn_of(fd, "sendmsg"), parts[0].iov_base, parts[0].iov_len, parts[1].iov_base, parts[1].iov_len);
}

ssize_t splice(int from, off64_t *from_at, int to, off64_t *to_at, size_t n, unsigned flags)
{
    REAL(splice);
    if (!IS_MODELLED(from))
        return real(from, from_at, to, to_at, n, flags);
    return files_splice(file_of(from, "splice"), file_of(to, "splice"), n);
}

/* ---- descriptors */

int pipe2(int ends[2], int flags)
{
    REAL(pipe2);
    if (!history_on || this_thread < 0)
        return real(ends, flags);
    return pipe_open(ends, (flags & O_NONBLOCK) != 0);
}

int close(int fd)
{
    REAL(close);
    return IS_MODELLED(fd) ? file_close(fd) : real(fd);
}

int shutdown(int fd, int how)
{
    REAL(shutdown);
    if (!IS_MODELLED(fd))
        return real(fd, how);
    if (how != SHUT_WR)
        broken("shutdown() of another side");
    return conn_shutdown(conn_of(fd, "shutdown"));
}

static int control(int fd, int command, long argument)
{
    struct file *f = file_of(fd, "fcntl");
    int *nonblocking = f->kind == CONN ? &f->client->is_nonblocking : &f->is_nonblocking;
    switch (command) {
    case F_GETFL:
        return O_RDWR | (*nonblocking ? O_NONBLOCK : 0);
    case F_SETFL:
        *nonblocking = (argument & O_NONBLOCK) != 0;
        return 0;
    case F_GETPIPE_SZ:
        return (int)f->pipe->size;
    case F_SETPIPE_SZ:
        return pipe_resize(f, (size_t)argument);
    case F_DUPFD_CLOEXEC:
        return file_duplicate(fd);
    default:
        broken("fcntl() with the command %d", command);
    }
}

#define FCNTL(name) \
    int name(int fd, int command, ...) \
    { \
        REAL(name); \
        va_list arguments; \
        long argument; \
        va_start(arguments, command); \
        argument = va_arg(arguments, long); \
        va_end(arguments); \
        return IS_MODELLED(fd) ? control(fd, command, argument) : real(fd, command, argument); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

int ioctl(int fd, unsigned long request, ...)
{
    REAL(ioctl);
    va_list arguments;
    void *argument;
    struct client *c;
    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!IS_MODELLED(fd))
        return real(fd, request, argument);
    if (request != TIOCOUTQ)
        broken("ioctl() with the request %#lx", request);
    c = conn_of(fd, "ioctl");
    *(int *)argument = c->asked = (int)(c->put - c->acked);
    return 0;
}

/* ---- sockets */

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    static const int errors[] = {EINTR, ECONNABORTED, EPROTO, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    struct sockaddr_in *ip = (struct sockaddr_in *)address;
    struct client *c;
    REAL(accept4);
    if (!IS_MODELLED(fd))
        return real(fd, address, length, flags);
    file_of(fd, "accept");
    if (happens(plan.scarce)) {
        int err = errors[below(sizeof errors / sizeof *errors)];
        note("accept fails with errno %ld", err, 0, 0);
        return fails(err);
    }
    if (queued == 0)
        return fails(EAGAIN);
    c = queue[0];
    memmove(queue, queue + 1, (size_t)--queued * sizeof *queue);
    rule_accept(c);
    c->fd = file_open(CONN, c, NULL);
    memset(address, 0, *length);
    if (c->is_unix) {
        address->sa_family = AF_UNIX;
        *length = sizeof address->sa_family;
    } else {
        ip->sin_family = AF_INET;
        ip->sin_port = htons((uint16_t)(1024 + c->number));
        ip->sin_addr.s_addr = htonl(0x7f000001 + (uint32_t)c->host);
        *length = sizeof *ip;
    }
    note("client %ld: is accepted as descriptor %ld", c->number, c->fd, 0);
    return c->fd;
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    REAL(getsockopt);
    if (!IS_MODELLED(fd))
        return real(fd, level, name, value, length);
    if (level == IPPROTO_TCP && name == TCP_INFO) {
        if (plan.seed % 3 == 0)
            return fails(ENOPROTOOPT);
        ((struct tcp_info *)value)->tcpi_unacked = (uint32_t)queued;
        return 0;
    }
    if (level == SOL_SOCKET && (name == SO_TYPE || name == SO_PROTOCOL)) { /* the socket module asks */
        *(int *)value = name == SO_TYPE ? SOCK_STREAM : 0;
        return 0;
    }
    if (level != SOL_SOCKET || name != SO_ERROR)
        broken("getsockopt() of %d, %d", level, name);
    *(int *)value = conn_error(conn_of(fd, "getsockopt"));
    return 0;
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    REAL(setsockopt);
    if (!IS_MODELLED(fd))
        return real(fd, level, name, value, length);
    if (level == SOL_SOCKET && name == SO_LINGER)
        conn_of(fd, "setsockopt")->is_reset_at_close = 1;
    return 0;
}

int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    REAL(getpeername);
    if (!IS_MODELLED(fd))
        return real(fd, address, length);
    return fails(ENOTCONN);
}

int getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
    REAL(getsockname);
    if (!IS_MODELLED(fd))
        return real(fd, address, length);
    address->sa_family = conn_of(fd, "getsockname")->is_unix ? AF_UNIX : AF_INET;
    *length = address->sa_family == AF_UNIX ? sizeof address->sa_family : sizeof(struct sockaddr_in);
    return 0;
}

/* ---- waits */

int epoll_create1(int flags)
{
    REAL(epoll_create1);
    if (!history_on || this_thread < 0)
        return real(flags);
    return file_open(EPOLL, NULL, NULL);
}

int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    REAL(epoll_ctl);
    return IS_MODELLED(epoll) ? watch_change(what, fd, event) : real(epoll, what, fd, event);
}

int epoll_wait(int epoll, struct epoll_event *events, int most, int milliseconds)
{
    REAL(epoll_wait);
    return IS_MODELLED(epoll) ? wait_epoll(events, most, milliseconds) : real(epoll, events, most, milliseconds);
}

static int is_any_modelled(const struct pollfd *fds, nfds_t n)
{
    nfds_t i;
    for (i = 0; i < n; i++)
        if (IS_MODELLED(fds[i].fd))
            return 1;
    return 0;
}

int poll(struct pollfd *fds, nfds_t n, int milliseconds)
{
    REAL(poll);
    return is_any_modelled(fds, n) ? wait_poll(fds, n, milliseconds) : real(fds, n, milliseconds);
}

int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *time, const sigset_t *mask)
{
    REAL(ppoll);
    if (!history_on || this_thread < 0 || n != 1 || fds->fd >= 0)
        return real(fds, n, time, mask);
    call_begin();
    return wait_nothing(time->tv_sec * SECOND + time->tv_nsec);
}

/* With _FORTIFY_SOURCE a call may have this name. */

ssize_t __read_chk(int fd, void *data, size_t n, size_t size)
{
    (void)size;
    return read(fd, data, n);
}

ssize_t __recv_chk(int fd, void *data, size_t n, size_t size, int flags)
{
    (void)size;
    return recv(fd, data, n, flags);
}

int __poll_chk(struct pollfd *fds, nfds_t n, int milliseconds, size_t size)
{
    (void)size;
    return poll(fds, n, milliseconds);
}

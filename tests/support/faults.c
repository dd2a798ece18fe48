/* A shim, preloaded by test_faults.py, that injects a fault into the k-th of the calls below after fault_arm().
 *
 * fault_arm(call, k, error): call is a value of the enum below, or -1 for any of them; error is an errno, or -1 to
 * transfer only one byte. fault_fired() reports whether the k-th call was made before fault_disarm().
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    READ, RECV, WRITE, SEND, POLL, ACCEPT, SENDMSG, EPOLL_WAIT, EPOLL_CTL, FORK, PIPE,
    SOCKET, CONNECT, GETSOCKOPT, SETSOCKOPT, EPOLL_CREATE, PTHREAD_CREATE,
    READV, SPLICE
};

static atomic_int armed_call = -2, countdown, error_to_make, fired;

void fault_arm(int call, int k, int error)
{
    error_to_make = error;
    countdown = k;
    fired = 0;
    armed_call = call;
}

void fault_disarm(void)
{
    armed_call = -2;
}

int fault_fired(void)
{
    return fired;
}

/* Returns 0 to make the real call, -1 to fail with errno, 1 to transfer only one byte. */
static int fault(int call)
{
    if (armed_call != call && armed_call != -1)
        return 0;
    if (--countdown != 0)
        return 0;
    fired = 1;
    if (error_to_make < 0)
        return 1;
    errno = error_to_make;
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t read(int fd, void *data, size_t n)
{
    int f = fault(READ);
    return f < 0 ? -1 : REAL(read)(fd, data, f && n ? 1 : n);
}

ssize_t readv(int fd, const struct iovec *parts, int n)
{
    int f = fault(READV);
    struct iovec one;
    if (f > 0 && n && parts->iov_len) {
        one.iov_base = parts->iov_base;
        one.iov_len = 1;
        return REAL(readv)(fd, &one, 1);
    }
    return f < 0 ? -1 : REAL(readv)(fd, parts, n);
}

ssize_t recv(int fd, void *data, size_t n, int flags)
{
    int f = fault(RECV);
    return f < 0 ? -1 : REAL(recv)(fd, data, f && n ? 1 : n, flags);
}

ssize_t write(int fd, const void *data, size_t n)
{
    int f = fault(WRITE);
    return f < 0 ? -1 : REAL(write)(fd, data, f && n ? 1 : n);
}

ssize_t send(int fd, const void *data, size_t n, int flags)
{
    int f = fault(SEND);
    return f < 0 ? -1 : REAL(send)(fd, data, f && n ? 1 : n, flags);
}

int poll(struct pollfd *fds, nfds_t n, int timeout)
{
    int f = fault(POLL);
    return f < 0 ? -1 : REAL(poll)(fds, n, timeout);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int f = fault(ACCEPT);
    return f < 0 ? -1 : REAL(accept4)(fd, address, length, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    int f = fault(SENDMSG);
    struct iovec one;
    struct msghdr piece = *message;
    if (f > 0 && message->msg_iovlen && message->msg_iov[0].iov_len) {
        one.iov_base = message->msg_iov[0].iov_base;
        one.iov_len = 1;
        piece.msg_iov = &one;
        piece.msg_iovlen = 1;
    }
    return f < 0 ? -1 : REAL(sendmsg)(fd, &piece, flags);
}

int epoll_wait(int epoll, struct epoll_event *events, int n, int timeout)
{
    int f = fault(EPOLL_WAIT);
    return f < 0 ? -1 : REAL(epoll_wait)(epoll, events, n, timeout);
}

int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    int f = fault(EPOLL_CTL);
    return f < 0 ? -1 : REAL(epoll_ctl)(epoll, what, fd, event);
}

ssize_t splice(int from, off64_t *at, int to, off64_t *where, size_t n, unsigned flags)
{
    int f = fault(SPLICE);
    return f < 0 ? -1 : REAL(splice)(from, at, to, where, f && n ? 1 : n, flags);
}

pid_t fork(void)
{
    int f = fault(FORK);
    return f < 0 ? -1 : REAL(fork)();
}

int pipe2(int ends[2], int flags)
{
    int f = fault(PIPE);
    return f < 0 ? -1 : REAL(pipe2)(ends, flags);
}

int socket(int family, int kind, int protocol)
{
    int f = fault(SOCKET);
    return f < 0 ? -1 : REAL(socket)(family, kind, protocol);
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    int f = fault(CONNECT);
    return f < 0 ? -1 : REAL(connect)(fd, address, length);
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    int f = fault(GETSOCKOPT);
    return f < 0 ? -1 : REAL(getsockopt)(fd, level, name, value, length);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    int f = fault(SETSOCKOPT);
    return f < 0 ? -1 : REAL(setsockopt)(fd, level, name, value, length);
}

int epoll_create1(int flags)
{
    int f = fault(EPOLL_CREATE);
    return f < 0 ? -1 : REAL(epoll_create1)(flags);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *data)
{
    int f = fault(PTHREAD_CREATE);
    return f < 0 ? errno : REAL(pthread_create)(thread, attributes, run, data);
}

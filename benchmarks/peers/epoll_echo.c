/* A byte echo server: one thread, level-triggered epoll, one read and one write per event.
 *
 * usage: epoll_echo [-b BYTES] [UNIX-PATH]      prints "Listening on 127.0.0.1:PORT" (or the path) when it is ready
 *
 * All connections share one read buffer of BYTES (64 KiB). After a partial write the connection keeps the rest, and is not read from until
 * the rest is written. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { EVENTS = 256 };

struct conn {
    int fd;
    size_t start, end; /* the unwritten part of rest */
    char *rest;
};

static int poller;
static char *buffer;
static size_t size = 64 * 1024; /* of the buffer */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct conn *c, int op, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, op, c->fd, &e) < 0)
        die("epoll_ctl");
}

static void end(struct conn *c) {
    close(c->fd);
    free(c->rest);
    free(c);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN)
                perror("accept4");
            return;
        }
        struct conn *c = calloc(1, sizeof *c);
        if (!c)
            die("calloc");
        c->fd = fd;
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void echo(struct conn *c) {
    ssize_t n = read(c->fd, buffer, size);
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            end(c);
        return;
    }
    ssize_t sent = write(c->fd, buffer, n);
    if (sent == n)
        return;
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            end(c);
            return;
        }
        sent = 0;
    }
    c->start = 0;
    c->end = n - sent;
    c->rest = malloc(c->end);
    if (!c->rest)
        die("malloc");
    memcpy(c->rest, buffer + sent, c->end);
    watch(c, EPOLL_CTL_MOD, EPOLLOUT);
}

static void flush(struct conn *c) {
    ssize_t sent = write(c->fd, c->rest + c->start, c->end - c->start);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            end(c);
        return;
    }
    c->start += sent;
    if (c->start == c->end) {
        free(c->rest);
        c->rest = NULL;
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static int listen_at(const char *path) {
    int fd = socket(path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    if (path) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        if (strlen(path) >= sizeof at.sun_path) {
            errno = ENAMETOOLONG;
            die(path);
        }
        strcpy(at.sun_path, path);
        if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 4096) < 0)
            die(path);
        printf("Listening on %s\n", path);
    } else {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof at;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* inherited by accepted sockets */
        if (bind(fd, (struct sockaddr *)&at, size) < 0 || listen(fd, 4096) < 0 ||
            getsockname(fd, (struct sockaddr *)&at, &size) < 0)
            die("listen");
        printf("Listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    }
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    for (int o; (o = getopt(argc, argv, "b:")) != -1;) {
        if (o != 'b' || !(size = strtoul(optarg, NULL, 10)))
            return 2;
    }
    buffer = malloc(size);
    if (!buffer)
        die("malloc");
    int listener = listen_at(optind < argc ? argv[optind] : NULL);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        die("epoll_create1");
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e) < 0)
        die("epoll_ctl");
    for (;;) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (c->rest)
                flush(c);
            else
                echo(c);
        }
    }
}

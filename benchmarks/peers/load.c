/* A closed-loop load generator for echo servers: one thread, epoll, every byte checked.
 *
 * usage: load [-c CONNECTIONS] [-p IN-FLIGHT] [-s BYTES, at most 262144] [-d SECONDS] [-u WARM-UP] [-w] PORT|UNIX-PATH
 *
 * It connects, and has one message echoed on each connection, so that the server has accepted it. Then it keeps
 * IN-FLIGHT messages in flight on every connection for WARM-UP + SECONDS, waits for the outstanding echoes, and prints
 * one line:
 *
 *   {"messages": in SECONDS, "seconds": measured, "rate": per second, "total": with warm-up and end, "elapsed":, "cpu":}
 *
 * "total", "elapsed" and the load generator's "cpu" cover the whole run. With -w it prints "ready" when it is connected,
 * does one run for each line on stdin, and ends at the end of stdin; between runs it is idle.
 *
 * The messages are a cycle of 251 different ones (17 from 64 KiB on) that end in '\n'. Each connection starts at another position in the
 * cycle, so that a byte lost, repeated, changed, or sent to another connection is detected. Exit status: 0 success, 1
 * connection lost or system error, 2 usage, 3 wrong echo. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { CYCLE = 251, CYCLE_OF_LARGE = 17, LARGE = 64 * 1024, CHUNK = 256 * 1024, EVENTS = 256, PATIENCE = 10 };

struct conn {
    int fd, blocked;
    size_t out, in;             /* positions in the cycle of the next byte to send and the next byte to receive */
    unsigned long long unsent;  /* bytes that may be sent now */
    size_t part;                /* bytes received of an incomplete message */
};

static size_t connections = 50, in_flight = 1, size = 64;
static size_t cycle, messages_in_cycle; /* length of the cycle, in bytes and in messages */
static double seconds = 1, warm_up = 0.2;
static int waiting, poller, sending;
static char *pattern; /* the cycle, followed by its beginning, so that CHUNK bytes from any position are contiguous */
static unsigned long long echoed;

static void die(int status, const char *what) {
    if (status == 1 && errno)
        perror(what);
    else
        fprintf(stderr, "%s\n", what);
    exit(status);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void make_pattern(void) {
    messages_in_cycle = size < LARGE ? CYCLE : CYCLE_OF_LARGE; /* a few megabytes at most */
    cycle = messages_in_cycle * size;
    pattern = malloc(cycle + CHUNK);
    if (!pattern)
        die(1, "malloc");
    unsigned long long seed = 88172645463325252ull;
    for (size_t i = 0; i < cycle; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        pattern[i] = i % size == size - 1 ? '\n' : "0123456789abcdefghijklmnopqrstuvwxyz"[seed % 36];
    }
    for (size_t i = 0; i < CHUNK; i++)
        pattern[cycle + i] = pattern[i % cycle];
}

static size_t onward(size_t place, size_t n) {
    place += n;
    return place < cycle ? place : place % cycle;
}

static void watch(struct conn *c, int op, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, op, c->fd, &e) < 0)
        die(1, "epoll_ctl");
}

static void dispatch(struct conn *c) {
    int blocked = 0;
    while (c->unsent && !blocked) {
        size_t want = c->unsent < CHUNK ? c->unsent : CHUNK;
        ssize_t n = send(c->fd, pattern + c->out, want, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINTR)
                die(1, "send");
            n = 0;
        }
        c->out = onward(c->out, n);
        c->unsent -= n;
        blocked = (size_t)n < want;
    }
    if (blocked != c->blocked)
        watch(c, EPOLL_CTL_MOD, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN);
    c->blocked = blocked;
}

static void collect(struct conn *c) {
    static char buffer[CHUNK];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n <= 0) {
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        die(1, n ? "recv" : "the server closed a connection");
    }
    if (memcmp(buffer, pattern + c->in, n))
        die(3, "a wrong echo");
    c->in = onward(c->in, n);
    size_t bytes = c->part + n, messages = bytes / size;
    c->part = bytes - messages * size;
    echoed += messages;
    if (sending && messages) {
        c->unsent += messages * size;
        dispatch(c);
    }
}

static void turn(int timeout_ms) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(poller, events, EVENTS, timeout_ms);
    if (n < 0 && errno != EINTR)
        die(1, "epoll_wait");
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (events[i].events & EPOLLOUT)
            dispatch(c);
        if (events[i].events & ~EPOLLOUT)
            collect(c);
    }
}

static void open_one(struct conn *c, const char *where, size_t number) {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_un un;
    } to = {0};
    int local = strchr(where, '/') != NULL, on = 1;
    if (local) {
        to.un.sun_family = AF_UNIX;
        strncpy(to.un.sun_path, where, sizeof to.un.sun_path - 1);
    } else {
        to.in.sin_family = AF_INET;
        to.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        to.in.sin_port = htons(atoi(where));
    }
    c->fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, &to.any, local ? sizeof to.un : sizeof to.in) < 0)
        die(1, "connect");
    if (!local)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct timeval patience = {.tv_sec = PATIENCE};
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    c->out = c->in = number % messages_in_cycle * size;
    if (send(c->fd, pattern + c->out, size, MSG_NOSIGNAL) != (ssize_t)size)
        die(1, "send");
    for (size_t got = 0; got < size;) {
        char buffer[CHUNK];
        ssize_t n = recv(c->fd, buffer, size - got < CHUNK ? size - got : CHUNK, 0);
        if (n <= 0)
            die(1, n ? "recv of the first echo" : "the server closed a connection");
        if (memcmp(buffer, pattern + c->in + got, n))
            die(3, "a wrong echo");
        got += n;
    }
    c->out = c->in = onward(c->in, size);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void run(struct conn *conns) {
    unsigned long long due = connections * in_flight;
    echoed = 0;
    sending = 1;
    double begin = now(), before = cpu(), from, to;
    for (size_t i = 0; i < connections; i++) {
        conns[i].unsent = in_flight * size;
        dispatch(&conns[i]);
    }
    while ((from = now()) < begin + warm_up)
        turn(100);
    unsigned long long first = echoed;
    while ((to = now()) < from + seconds)
        turn(100);
    unsigned long long messages = echoed - first;
    /* Wait for all outstanding messages: each echo so far allowed one more to be sent. */
    sending = 0;
    due += echoed;
    for (double last = now(); echoed < due;) {
        unsigned long long had = echoed;
        turn(100);
        if (echoed != had)
            last = now();
        else if (now() > last + PATIENCE)
            errno = 0, die(1, "messages are lost");
    }
    printf("{\"messages\": %llu, \"seconds\": %.6f, \"rate\": %.1f, \"total\": %llu, \"elapsed\": %.6f, \"cpu\": %.6f}\n",
           messages, to - from, messages / (to - from), echoed, now() - begin, cpu() - before);
    fflush(stdout);
}

static int read_newline(void) {
    char c;
    while (read(0, &c, 1) == 1)
        if (c == '\n')
            return 1;
    return 0;
}

int main(int argc, char **argv) {
    for (int o; (o = getopt(argc, argv, "c:p:s:d:u:w")) != -1;)
        switch (o) {
        case 'c': connections = strtoul(optarg, NULL, 10); break;
        case 'p': in_flight = strtoul(optarg, NULL, 10); break;
        case 's': size = strtoul(optarg, NULL, 10); break;
        case 'd': seconds = atof(optarg); break;
        case 'u': warm_up = atof(optarg); break;
        case 'w': waiting = 1; break;
        default: exit(2);
        }
    if (optind != argc - 1 || !connections || !in_flight || !size || size > CHUNK)
        die(2, "usage: load [-c CONNECTIONS] [-p IN-FLIGHT] [-s BYTES] [-d SECONDS] [-u WARM-UP] [-w] PORT|UNIX-PATH");
    make_pattern();
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct conn *conns = calloc(connections, sizeof *conns);
    if (poller < 0 || !conns)
        die(1, "start");
    for (size_t i = 0; i < connections; i++)
        open_one(&conns[i], argv[optind], i);
    if (!waiting) {
        run(conns);
        return 0;
    }
    puts("ready");
    fflush(stdout);
    while (read_newline())
        run(conns);
    return 0;
}

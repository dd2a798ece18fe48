/* The server's side of a connection: what Linux does for TCP and for unix sockets, at any moment that it may. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

/* A unix socket knows at once that its peer has gone. */
static int peer_is_gone(const struct client *c)
{
    return c->is_unix && c->is_gone;
}

int conn_has_ended(const struct client *c)
{
    return c->fin_arrived || c->is_dead || peer_is_gone(c);
}

static size_t part(size_t n)
{
    return n > 1 && happens(plan.cut) ? 1 + (size_t)below(below(3) ? n : n < 8 ? n : 8) : n;
}

static int failing(struct client *c, const int *errors, size_t n)
{
    if (happens(plan.interrupt)) {
        moved++;
        return fails(EINTR);
    }
    if (!happens(plan.fail))
        return 0;
    c->failed = errors[below(n)];
    moved++;
    return fails(c->failed);
}

ssize_t conn_receive(struct client *c, void *data, size_t n)
{
    static const int errors[] = {ENOMEM, ENOBUFS, ETIMEDOUT, EHOSTUNREACH, ECONNRESET};
    size_t got = c->arrived - c->taken;
    rule_before_receive(c);
    if (n == 0)
        broken("a read of no bytes");
    if (failing(c, errors, sizeof errors / sizeof *errors) < 0) {
        note("client %ld: receive fails with errno %ld", c->number, errno, 0);
        return -1;
    }
    if (got) {
        got = part(got < n ? got : n);
        memcpy(data, c->data + c->taken, got);
        if (happens(plan.corrupt))
            *(unsigned char *)data ^= 128;
        note("client %ld: %ld bytes received, of at most %ld", c->number, (int64_t)got, (int64_t)n);
        rule_received(c, got);
        client_has_room(c);
        return (ssize_t)got;
    }
    if (c->error) {
        c->failed = c->error;
        c->error = 0;
        moved++;
        note("client %ld: receive fails with errno %ld", c->number, c->failed, 0);
        return fails(c->failed);
    }
    if (conn_has_ended(c)) {
        note("client %ld: end of input", c->number, 0, 0);
        if (!c->told_end)
            moved++;
        c->told_end = 1;
        rule_told_end(c);
        return 0;
    }
    note("client %ld: nothing to receive", c->number, 0, 0);
    c->drained |= stop_asked;
    return fails(EAGAIN);
}

ssize_t conn_peek(struct client *c, void *data, size_t n)
{
    size_t got = c->arrived - c->taken;
    if (!got)
        return conn_receive(c, data, n);
    got = got < n ? got : n;
    memcpy(data, c->data + c->taken, got);
    note("client %ld: %ld bytes are looked at, of at most %ld", c->number, (int64_t)got, (int64_t)n);
    return (ssize_t)got;
}

ssize_t conn_send(struct client *c, const unsigned char *first, size_t n, const unsigned char *second, size_t m)
{
    static const int errors[] = {ENOMEM, ENOBUFS, ETIMEDOUT, EHOSTUNREACH, EPIPE};
    size_t room = c->out_room - (c->put - c->acked), put;
    rule_send(c, first, c->put, n);
    rule_send(c, second, c->put + n, m);
    if (failing(c, errors, sizeof errors / sizeof *errors) < 0) {
        note("client %ld: send fails with errno %ld", c->number, errno, 0);
        return -1;
    }
    if (c->error || c->is_dead || peer_is_gone(c)) {
        c->failed = c->error ? c->error : EPIPE;
        c->error = 0;
        moved++;
        note("client %ld: send fails with errno %ld", c->number, c->failed, 0);
        return fails(c->failed);
    }
    if (room == 0 || happens(plan.refuse)) {
        moved += room != 0;
        note("client %ld: no room to send", c->number, 0, 0);
        return fails(EAGAIN);
    }
    put = part(n + m < room ? n + m : room);
    rule_sent(c, put);
    note("client %ld: %ld bytes sent, of %ld", c->number, (int64_t)put, (int64_t)(n + m));
    client_acknowledge(c);
    return (ssize_t)put;
}

int conn_shutdown(struct client *c)
{
    moved++;
    if (c->is_dead && !c->is_unix) {
        c->shut_failed = 1;
        note("client %ld: shutdown fails: not connected", c->number, 0, 0);
        return fails(ENOTCONN);
    }
    note("client %ld: shutdown", c->number, 0, 0);
    rule_shutdown(c);
    c->shut = 1;
    c->shut_at = turn_at;
    c->linger_late = late;
    client_acknowledge(c);
    return 0;
}

void conn_close(struct client *c)
{
    moved++;
    note("client %ld: close of descriptor %ld, %ld bytes unread", c->number, c->fd, (int64_t)(c->arrived - c->taken));
    rule_close(c);
    c->fd = -1;
    c->is_closed = 1;
    c->shut = 1;
    if (c->is_dead)
        return;
    if (c->arrived > c->taken || c->is_reset_at_close)
        client_lose(c);
    else
        client_acknowledge(c);
    client_has_room(c); /* what it still sends is answered by a reset */
}

int conn_error(struct client *c)
{
    int err = c->error;
    if (err)
        c->failed = err;
    c->error = 0;
    return err;
}

/* As tcp_poll() and unix_poll(): writable from a third of free room on. */
short conn_events(const struct client *c)
{
    size_t room = c->out_room - (c->put - c->acked);
    int no_more = conn_has_ended(c);
    short events = 0;
    if (c->arrived > c->taken || no_more)
        events |= POLLIN;
    if (no_more)
        events |= POLLRDHUP;
    if (c->is_dead || peer_is_gone(c) || (no_more && c->shut))
        events |= POLLHUP;
    if (c->error)
        events |= POLLERR;
    if (c->shut || c->is_dead || peer_is_gone(c) || (room && room * 3 >= c->out_room))
        events |= POLLOUT;
    return events;
}

/* The clients, each with a script that the seed has written, and the network between them and the server. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

struct client clients[CLIENTS_MAX], *queue[CLIENTS_MAX];
int queued, queue_open;
static int64_t soonest;

#define ONE_OF(array) (array)[below(sizeof(array) / sizeof *(array))]

static int64_t about(int64_t time)
{
    return time ? (int64_t)below(2 * (uint64_t)time) : (int64_t)below(20 * MICROSECOND);
}

/* ---- the script */

static void write_data(struct client *c)
{
    static const uint64_t lengths[] = {1, 3, 20, 80, 80, 700, 9000, 150000};
    uint64_t length = ONE_OF(lengths), next = below(2 * length);
    unsigned char key = (unsigned char)below(23);
    size_t i;
    c->data = malloc(c->total + 1);
    for (i = 0; i < c->total; i++) {
        if (next-- == 0) {
            c->data[i] = '\n';
            next = below(2 * length);
        } else {
            c->data[i] = (unsigned char)('a' + (i + i / 26 + i / 701 + key) % 26);
        }
    }
}

static void write_script(struct client *c)
{
    static const size_t rooms[] = {1, 3, 64, 1000, 4096, 16384, 65536, 65536, 300000, 300000};
    static const size_t pieces[] = {1, 10, 100, 1000, 5000, 65536, 300000};
    static const int64_t delays[] = {0, 0, 200 * MICROSECOND, 20 * MILLISECOND, 300 * MILLISECOND};
    int64_t idle = plan.idle > 0 ? plan.idle : 10 * SECOND;
    int64_t paces[] = {0, 0, 0, MILLISECOND, MILLISECOND, 100 * MILLISECOND, idle / 9, idle / 2, idle * 9 / 10, idle * 13 / 10};
    size_t least;
    int i, is_big = happens(plan.big);
    c->is_unix = below(4) == 0;
    c->host = (int)below(3);
    c->fd = c->asked = -1;
    c->in_room = ONE_OF(rooms);
    c->out_room = ONE_OF(rooms);
    c->window = ONE_OF(rooms);
    c->pipe = ONE_OF(rooms);
    if (is_big && below(2)) /* room enough for reads that fill the loop's area */
        c->in_room = c->pipe = 300000;
    c->piece = is_big ? 65536 : ONE_OF(pieces);
    c->bite = below(8) ? ONE_OF(pieces) : 0;
    c->delay = c->is_unix ? 0 : ONE_OF(delays);
    c->pace = ONE_OF(paces);
    c->read_pace = ONE_OF(paces);
    c->total = below(8) ? below(is_big ? 600000 : below(2) ? 3000 : 100) : 0;
    least = c->in_room < c->out_room ? c->in_room : c->out_room;
    least = least < c->window ? least : c->window;
    least = least < c->pipe ? least : c->pipe;
    least = least < c->piece ? least : c->piece;
    if (c->bite && c->bite < least)
        least = c->bite;
    if (c->total > 200 * least)
        c->total = 200 * least;
    c->ending = below(3) ? HALF_CLOSE : (enum ending)below(ENDINGS);
    if (c->ending == VANISH && c->is_unix)
        c->ending = STAY;
    c->abrupt = below(5) == 0;
    c->ignores_end = below(10) == 0;
    write_data(c);
    for (i = 0; i < ACTIONS; i++)
        c->at[i] = NEVER;
    client_at(c, CONNECT, now + (int64_t)below((uint64_t)plan.span_ms * MILLISECOND + 1));
}

void clients_begin(void)
{
    int i;
    soonest = NEVER;
    queued = 0;
    queue_open = 1;
    for (i = 0; i < plan.clients; i++) {
        memset(&clients[i], 0, sizeof clients[i]);
        clients[i].number = i;
        write_script(&clients[i]);
    }
}

void clients_end(void)
{
    int i;
    for (i = 0; i < plan.clients; i++)
        free(clients[i].data);
}

/* ---- the network */

void client_at(struct client *c, enum action what, int64_t time)
{
    if (time >= c->at[what])
        return;
    c->at[what] = time;
    if (time < soonest)
        soonest = time;
}

int64_t clients_next(void)
{
    return soonest;
}

static void do_no_more(struct client *c)
{
    int i;
    for (i = 0; i < ACTIONS; i++)
        c->at[i] = NEVER;
}

/* The server's socket gets a reset, or gives up. */
static void kill_socket(struct client *c, int err)
{
    do_no_more(c);
    c->is_gone = 1;
    if (c->is_dead || c->is_closed)
        return;
    c->is_dead = 1;
    c->error = err;
}

void client_lose(struct client *c)
{
    note("client %ld: is reset", c->number, 0, 0);
    do_no_more(c);
    c->is_lost = c->is_gone = 1;
}

void client_has_room(struct client *c)
{
    if (c->is_unix ? c->blocked : c->arrived < c->sent || c->fin_sent)
        client_at(c, c->is_unix ? SEND : ARRIVE, now + about(c->delay));
}

void client_acknowledge(struct client *c)
{
    if (!c->is_dead && !c->is_lost)
        client_at(c, ACKNOWLEDGE, now + about(c->delay));
}

static size_t some(size_t n)
{
    return n > 1 && below(2) ? 1 + (size_t)below(n) : n;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void do_connect(struct client *c)
{
    if (!queue_open) {
        note("client %ld: is refused", c->number, 0, 0);
        return;
    }
    note("client %ld: connects, to send %ld bytes, then to do %ld", c->number, (int64_t)c->total, c->ending);
    c->connected_at = now;
    queue[queued++] = c;
    client_at(c, c->total ? SEND : END, now + about(c->pace));
    if (c->abrupt)
        client_at(c, LEAVE, now + about(c->pace * 4 + 5 * MILLISECOND));
}

static void arrive_at_end(struct client *c)
{
    if (c->fin_sent && c->arrived == c->sent && !c->fin_arrived) {
        note("client %ld: its end arrives", c->number, 0, 0);
        c->fin_arrived = 1;
    }
}

static void do_send(struct client *c)
{
    size_t room = c->is_unix ? c->in_room - (c->arrived - c->taken) : c->pipe - (c->sent - c->arrived);
    size_t n = least(least(1 + (size_t)below(c->piece), room), c->total - c->sent);
    if (c->is_gone || c->fin_sent || c->sent == c->total)
        return;
    if (c->is_closed && c->is_unix) {
        client_lose(c);
        return;
    }
    c->blocked = n == 0;
    if (n == 0)
        return;
    c->sent += n;
    note("client %ld: sends %ld bytes, %ld in all", c->number, (int64_t)n, (int64_t)c->sent);
    if (c->is_unix)
        c->arrived = c->sent;
    else
        client_at(c, ARRIVE, now + about(c->delay));
    client_at(c, c->sent == c->total ? END : SEND, now + about(c->pace));
}

static void do_arrive(struct client *c)
{
    size_t n = some(least(c->sent - c->arrived, c->in_room - (c->arrived - c->taken)));
    if (c->is_closed && c->sent > c->arrived) {
        client_lose(c);
        return;
    }
    if (n) {
        c->arrived += n;
        note("client %ld: %ld bytes arrive, %ld in all", c->number, (int64_t)n, (int64_t)c->arrived);
        if (c->arrived < c->sent)
            client_at(c, ARRIVE, now + about(c->delay));
        if (c->blocked)
            client_at(c, SEND, now);
    }
    arrive_at_end(c);
}

static void do_acknowledge(struct client *c)
{
    size_t n = some(least(c->put - c->acked, c->window - (c->acked - c->read)));
    if (c->is_gone) {
        if (c->put > c->acked && c->ending != VANISH && !c->is_unix) {
            note("client %ld: answers by a reset", c->number, 0, 0);
            kill_socket(c, c->fin_arrived ? EPIPE : ECONNRESET);
        }
        return;
    }
    if (n) {
        c->acked += n;
        note("client %ld: %ld bytes acknowledged, %ld in all", c->number, (int64_t)n, (int64_t)c->acked);
        rule_acknowledged(c);
        if (c->put > c->acked)
            client_at(c, ACKNOWLEDGE, now + about(c->delay));
    }
    if (c->bite && (c->acked > c->read || (c->shut && c->acked == c->put)))
        client_at(c, READ, now + about(c->read_pace));
}

static void do_read(struct client *c)
{
    size_t n = least(1 + (size_t)below(c->bite), c->acked - c->read);
    if (c->is_gone)
        return;
    if (n) {
        c->read += n;
        note("client %ld: reads %ld bytes, %ld in all", c->number, (int64_t)n, (int64_t)c->read);
        if (c->put > c->acked)
            client_at(c, ACKNOWLEDGE, now + about(c->delay));
    }
    if (c->acked > c->read) {
        client_at(c, READ, now + about(c->read_pace));
    } else if (c->shut && c->acked == c->put && !c->saw_end) {
        note("client %ld: reads to the end", c->number, 0, 0);
        c->saw_end = 1;
        if (!c->ignores_end) {
            c->ending = CLOSE;
            c->abrupt = 1;
            client_at(c, END, now + about(c->pace));
        }
    } else if (c->sent == c->total && c->read == c->total) {
        client_at(c, END, now + about(c->pace));
    }
}

static void do_end(struct client *c)
{
    if (c->is_gone)
        return;
    if (c->ending == CLOSE && !c->abrupt && c->bite && c->read < c->total)
        return; /* when it has read everything */
    note("client %ld: ends: %ld", c->number, c->ending, 0);
    if (c->ending == HALF_CLOSE) {
        c->fin_sent = 1;
        if (c->is_unix)
            arrive_at_end(c);
        client_has_room(c);
    } else if (c->ending == CLOSE || c->ending == RESET) {
        int is_reset = c->ending == RESET || c->acked > c->read;
        do_no_more(c);
        c->is_gone = 1;
        if (c->is_unix) {
            c->error = !c->is_closed && c->put > c->read ? ECONNRESET : 0;
        } else if (is_reset) {
            kill_socket(c, c->fin_arrived ? EPIPE : ECONNRESET);
        } else {
            c->fin_sent = 1;
            client_has_room(c);
            client_acknowledge(c);
        }
    } else if (c->ending == VANISH) {
        do_no_more(c);
        c->is_gone = 1;
        client_at(c, GIVE_UP, now + 900 * SECOND + (int64_t)below(7000 * (uint64_t)SECOND));
    }
}

static void do_give_up(struct client *c)
{
    note("client %ld: the server's kernel gives up", c->number, 0, 0);
    kill_socket(c, ETIMEDOUT);
}

int clients_give_up(void)
{
    int i, n = 0;
    for (i = 0; i < plan.clients; i++)
        if (clients[i].fd >= 0 && !clients[i].is_dead && (!clients[i].is_gone || clients[i].ending == VANISH)) {
            note("client %ld: gives up", i, 0, 0);
            kill_socket(&clients[i], ECONNRESET);
            n++;
        }
    return n;
}

void clients_act(void)
{
    static void (*const acts[ACTIONS])(struct client *) = {
        [CONNECT] = do_connect, [SEND] = do_send, [ARRIVE] = do_arrive, [ACKNOWLEDGE] = do_acknowledge,
        [READ] = do_read,       [END] = do_end,   [LEAVE] = do_end,     [GIVE_UP] = do_give_up,
    };
    int i, what, found = 1;
    while (found) {
        int first = (int)below((uint64_t)plan.clients);
        found = 0;
        soonest = NEVER;
        for (i = 0; i < plan.clients; i++) {
            struct client *c = &clients[(first + i) % plan.clients];
            for (what = 0; what < ACTIONS; what++) {
                if (c->at[what] <= now) {
                    c->at[what] = NEVER;
                    acts[what](c);
                    found = 1;
                }
            }
        }
        soonest = NEVER;
        for (i = 0; i < plan.clients; i++)
            for (what = 0; what < ACTIONS; what++)
                if (clients[i].at[what] < soonest)
                    soonest = clients[i].at[what];
        if (soonest > now)
            found = 0;
    }
}

/* What must hold of every history, checked at each call that could break it. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "model.h"

enum { LOOKS = 8 };
enum { NAPS = 5 }; /* waits that pass without an event and without an effect, besides the looks at idle connections */
enum { SPINS = 40, REPORTS = 1000 }; /* turns in a row without an effect, and those of which each reports some lines */

int64_t turn_at;
int is_turn_new;
uint64_t moved;
struct counts counts;

static uint64_t moved_before;
static int spins, naps;
static int64_t moved_at; /* time of the last effect */
static int64_t late_at_stop;
static int accepted; /* number of connections that were accepted */
static int connections; /* number of those that the loop watched in its last wait */

void rules_begin(void)
{
    memset(&counts, 0, sizeof counts);
    turn_at = moved_at = now;
    moved = moved_before = 0;
    spins = naps = accepted = 0;
    late_at_stop = 0;
    memory_begin();
}

/* The time that is allowed in addition to a deadline: that of calls and delays since, and rounding. */
int64_t slack(int64_t late_before)
{
    return late - late_before + 10 * MILLISECOND;
}

static int64_t drain_deadline(void)
{
    return stop_asked && plan.drain >= 0 ? stop_asked_at + plan.drain : NEVER;
}

static int64_t linger(void)
{
    return plan.drain >= 0 ? plan.drain : 30 * SECOND;
}

/* ---- the limit of each address */

/* The other open connections of its address: those that the loop serves, or those that were accepted before. */
static int others_of_host(const struct client *c, int is_watched)
{
    int i, n = 0;
    for (i = 0; i < plan.clients; i++) {
        const struct client *other = &clients[i];
        n += other != c && other->fd >= 0 && !other->is_unix && other->host == c->host &&
             (is_watched ? other->is_watched : other->order < c->order);
    }
    return n;
}

/* The accept loop admits one after the other, so all that were accepted before are counted. */
static int is_over_host_limit(const struct client *c)
{
    return plan.per_host && !c->is_unix && others_of_host(c, 0) >= plan.per_host;
}

/* ---- progress and the idle timeout */

void rule_begins(struct client *c)
{
    if (plan.per_host && !c->is_unix && others_of_host(c, 1) >= plan.per_host)
        broken("client %d is served beyond the limit of its address", c->number);
    c->is_watched = 1;
    c->progress_at = turn_at;
    c->late_at = late;
}

void rule_progress(struct client *c)
{
    c->progress_at = turn_at;
    c->late_at = late;
}

/* It is progress if the loop waits to send, and the next look will show it. */
void rule_acknowledged(struct client *c)
{
    if ((c->put < c->due || c->put < c->part_due) && (int64_t)(c->put - c->acked) < c->asked) {
        c->progress_at = now;
        c->late_at = late;
    }
}

/* ---- bytes */

void rule_before_receive(struct client *c)
{
    if (!c->shut && c->put < c->due)
        broken("client %d is read from while %zu bytes wait to be sent to it", c->number, c->due - c->put);
}

/* What the handlers of history.py do: they echo, but end the connection at some lines. */
static void handle(struct client *c, size_t before)
{
    size_t i, start = c->due, end = c->due; /* of the line, and of what is answered */
    int is_moody = plan.handled == 2 && !plan.raw;
    if (plan.raw) {
        c->due = c->heard;
        return;
    }
    for (i = before; i < c->taken; i++) {
        if (c->data[i] != '\n')
            continue;
        if (plan.max_line && i + 1 - start > plan.max_line)
            break;
        counts.lines++;
        if (is_moody && !c->leaves && !c->aborts) {
            if (c->data[start] == 'x') /* the handler raises: nothing of this call is answered */
                c->is_wrong = c->leaves = 1, end = c->due;
            else if (c->data[start] == 'z')
                c->aborts = 1;
            else
                end = i + 1;
            c->leaves |= c->data[start] == 'q';
        }
        if (!is_moody)
            end = i + 1;
        start = i + 1;
    }
    c->due = end;
    if (!c->leaves && !c->aborts && plan.max_line && (i < c->taken || c->taken - start > plan.max_line))
        c->leaves = c->is_wrong = 1;
}

/* The handler gets what is left at the end of input. */
void rule_told_end(struct client *c)
{
    int first = c->due < c->heard && plan.handled == 2 && !plan.raw ? c->data[c->due] : 0;
    if (c->leaves || c->aborts || c->shut)
        return;
    c->aborts = first == 'z';
    c->leaves = first == 'q' || first == 'x';
    c->is_wrong = first == 'x';
    if (first != 'x')
        c->due = c->heard;
}

void rule_received(struct client *c, size_t n)
{
    size_t i, before = c->taken;
    c->taken += n;
    moved++;
    if (c->shut)
        return; /* it is discarded */
    c->heard += n;
    counts.bytes_in += (int64_t)n;
    memory_received(c, n);
    if (c->put > c->due) /* a part of a line was sent back, as there was no memory for the rest */
        c->due = c->put;
    if (plan.handled) {
        handle(c, before);
    } else if (plan.raw) {
        c->due = c->heard;
    } else {
        for (i = before; i < c->taken; i++)
            if (c->data[i] == '\n') {
                counts.lines++;
                c->due = i + 1;
            }
        if (plan.max_line && c->heard - c->due >= plan.max_line)
            c->due = c->heard;
    }
    rule_progress(c);
}

void rule_send(struct client *c, const unsigned char *data, size_t at, size_t n)
{
    if (c->shut)
        broken("client %d is sent bytes after the end", c->number);
    if (n == 0)
        return;
    if (at + n > c->heard)
        broken("client %d is sent bytes that it has not sent", c->number);
    if (memcmp(data, c->data + at, n) != 0)
        broken("client %d is sent wrong bytes, at %zu", c->number, at);
    if (at + n > c->due && at + n > c->part_due) {
        if (!may_send_part(c))
            broken("client %d is sent a part of a line", c->number);
        c->part_due = at + n; /* if there is no room to send, it is sent later, when there may be memory */
    }
}

void rule_sent(struct client *c, size_t n)
{
    c->put += n;
    memory_sent(c, n);
    moved++;
    rule_progress(c);
}

/* ---- the ends */

static size_t whole(const struct client *c, size_t n)
{
    while (plan.handled && !plan.raw && n && c->data[n - 1] != '\n')
        n--;
    return n;
}

void rule_shutdown(struct client *c)
{
    if (c->shut)
        broken("client %d: a second shutdown", c->number);
    if (!stop_asked && !c->leaves)
        broken("client %d: shutdown while the server is not stopping", c->number);
    if (c->put < (plan.handled ? c->due : c->heard)) /* without a handler, what is no whole line too */
        broken("client %d: shutdown before %zu bytes are sent", c->number, c->due - c->put);
    if (!c->leaves && c->put < whole(c, c->at_stop) && !may_drop_part(c))
        broken("client %d: shutdown after %zu bytes, but %zu had arrived at the stop", c->number, c->put, c->at_stop);
    memory_closed(c); /* what is no whole line is dropped */
}

static int is_reset(int err)
{
    return err == ECONNRESET || err == EPIPE;
}

void rule_close(struct client *c)
{
    const char *why = NULL;
    memory_closed(c);
    if (this_thread == ACCEPTOR) {
        counts.refused++;
        if (!is_over_host_limit(c) && !plan.scarce && now < drain_deadline())
            broken("client %d is refused for no reason", c->number);
        return;
    }
    counts.accepted++;
    counts.closed++;
    counts.bytes_out += (int64_t)c->put;
    if (c->failed) {
        why = "client %ld: closed for an error";
        if (plan.handled && stop_asked && c->heard && !c->put && !c->is_wrong && is_reset(c->failed))
            counts.unsure++; /* the loop does not remember that something had come */
        else if (c->heard || !is_reset(c->failed))
            counts.errors++;
        else
            counts.resets++;
        c->is_wrong = 0; /* it is one end */
    } else if (c->told_end && (c->shut || c->put == c->heard)) {
        why = "client %ld: closed for the end of input";
        c->is_ended = !c->leaves;
        counts.ended++;
        counts.left += c->leaves;
    } else if (c->aborts || (c->leaves && c->shut && turn_at >= c->shut_at + linger())) {
        why = "client %ld: closed for its handler";
        counts.left++;
    } else if (now >= drain_deadline()) {
        why = "client %ld: closed for the drain deadline";
    } else if (!c->shut && plan.idle >= 0 && c->is_watched && turn_at - c->progress_at >= plan.idle / LOOKS * LOOKS) {
        why = "client %ld: closed for the idle timeout";
        counts.idle++;
        c->is_wrong = 0;
    } else if (c->shut_failed) {
        why = "client %ld: closed for a lost connection";
    } else if (conn_has_ended(c) && may_drop_part(c)) {
        why = "client %ld: closed for its line, which has no room";
        counts.errors++;
    }
    if (c->is_wrong && now >= drain_deadline())
        counts.unsure++; /* which of the two ends it is */
    else
        counts.errors += c->is_wrong;
    if (why == NULL)
        broken("client %d: closed for no reason; %ld ns after the last progress", c->number,
               (long)(turn_at - c->progress_at));
    note(why, c->number, 0, 0);
}

void rule_accept(struct client *c)
{
    int i, open = 0;
    c->order = ++accepted;
    for (i = 0; i < plan.clients; i++)
        open += clients[i].fd >= 0;
    if (plan.limit && open >= plan.limit && !stop_asked)
        broken("client %d is accepted beyond the limit", c->number);
}

void rule_queue_closed(void)
{
    int i;
    for (i = 0; i < queued; i++)
        if (queue[i]->connected_at < stop_asked_at && !plan.scarce && now < drain_deadline())
            broken("client %d was in the queue at the stop, and is not served", queue[i]->number);
}

/* ---- waits of the loop */

static void check_watch(const struct watch *w)
{
    struct client *c = w->file->client;
    uint32_t wanted = !c->shut && c->put < c->due ? POLLOUT : POLLIN;
    if (!c->is_watched)
        rule_begins(c);
    if (w->events == POLLRDHUP && plan.max_memory && c->heard > c->put && c->put >= c->due)
        return; /* waits for memory */
    if (w->events == POLLOUT && !c->shut && c->put < c->heard && (c->drained || (plan.max_memory && (stop_asked || conn_has_ended(c)))))
        return; /* sends back what is no whole line, at the stop, or as there is no memory for the rest */
    if (w->events != wanted)
        broken("client %d: the loop waits for %#x, not for %#x", c->number, w->events, wanted);
}

static void check_deadlines(const struct client *c)
{
    if (c->shut && (!stop_asked || plan.drain >= 0) && now > c->shut_at + linger() + slack(c->linger_late))
        broken("client %d lingers too long", c->number);
    if (!c->shut && !stop_asked && plan.idle >= 0 &&
        now > c->progress_at + plan.idle + plan.idle / LOOKS + slack(c->late_at))
        broken("client %d is idle for too long", c->number);
}

void rule_wait(const struct watch *w, int n)
{
    int i;
    char seen[CLIENTS_MAX] = {0};
    connections = 0;
    for (i = 0; i < n; i++)
        if (w[i].file != NULL && w[i].file->kind == CONN) {
            check_watch(&w[i]);
            seen[w[i].file->client->number] = 1;
            connections++;
        }
    for (i = 0; i < plan.clients; i++) {
        int is_served = clients[i].is_watched && clients[i].fd >= 0;
        if (is_served)
            check_deadlines(&clients[i]);
        if (seen[i])
            clients[i].unwatched_at = 0;
        if (seen[i] != is_served && !(is_served && may_be_unwatched(&clients[i])))
            broken("client %d is%s watched", i, is_served ? " not" : "");
    }
    if (!stop_asked)
        late_at_stop = late;
    else if (drain_deadline() != NEVER && now > drain_deadline() + slack(late_at_stop))
        broken("the drain deadline has passed");
}

/* The most waits that may have ended by now for nothing since the last effect. */
static int64_t naps_allowed(void)
{
    int64_t looks = plan.idle >= 0 && connections ? 1 + (now - moved_at) / (plan.idle / LOOKS) : 0;
    return NAPS + looks * connections;
}

void rule_waited(int found, int timeout, int64_t waited)
{
    int is_over = !found && timeout > 0 && waited >= timeout * MILLISECOND;
    turn_at = now;
    is_turn_new = 1;
    if (moved != moved_before || (timeout != 0 && found == 0 && waited >= MILLISECOND))
        spins = 0;
    else if (++spins > (plan.lines ? REPORTS : SPINS))
        broken("the loop spins");
    if (moved != moved_before || is_memory_short()) {
        naps = 0;
        moved_at = now;
    } else if (is_over && ++naps > naps_allowed()) {
        broken("the loop wakes up again and again for nothing");
    }
    moved_before = moved;
}

void rule_end(void)
{
    int i;
    if (!stop_asked)
        broken("the server has ended, and nobody has stopped it");
    for (i = 0; i < plan.clients; i++) {
        struct client *c = &clients[i];
        if (c->fd >= 0)
            broken("client %d: its connection is open", i);
        if (c->saw_end && c->is_ended && c->read != c->put)
            broken("client %d: %zu bytes are back, of %zu", i, c->read, c->put);
    }
    if (files_left())
        broken("descriptors are open");
}

/* The memory limit: what the loop may hold, and what it may do while memory is short. */
#include "model.h"

#define MEMORY_LOOK (10 * MILLISECOND)

enum { AREA = 65536, BULK = 262144, KEPT = 128, PIECE = 4096 };

static size_t held; /* bytes received and not sent, of all connections */

void memory_begin(void)
{
    held = 0;
}

void memory_received(struct client *c, size_t n)
{
    size_t of_client = c->heard - c->put, most = plan.raw ? BULK : AREA + (plan.max_line ? plan.max_line : SIZE_MAX / 2);
    held += n;
    if (of_client > c->most_held)
        c->most_held = of_client;
    if (of_client > most)
        broken("client %d: %zu bytes are held", c->number, of_client);
    if (plan.max_memory && held > plan.max_memory + AREA + (size_t)plan.clients * PIECE)
        broken("%zu bytes are held of all clients", held);
}

void memory_sent(struct client *c, size_t n)
{
    held -= n;
    if (c->put == c->heard)
        c->most_held = 0;
}

void memory_closed(const struct client *c)
{
    if (!c->shut) /* after a shutdown nothing is held */
        held -= c->heard - c->put;
}

/* Whether the loop may find no memory for a read, and look for it every few milliseconds. A buffer grows to no more than
 * twice the bytes that it holds, and may keep that size until it is empty; at most a half of the limit is in reserve. */
int is_memory_short(void)
{
    size_t used = 0;
    int i;
    if (!plan.max_memory || !held)
        return 0;
    for (i = 0; i < plan.clients; i++)
        if (clients[i].fd >= 0 && !clients[i].shut && clients[i].heard > clients[i].put)
            used += 2 * clients[i].most_held + KEPT;
    return used + AREA + plan.max_memory / 2 > plan.max_memory;
}

/* A handler gets no part of a line. One that has come to its end, or to the stop, is held until the loop has found memory
 * for the rest, and no event is waited for. */
int may_be_unwatched(struct client *c)
{
    if (!plan.handled || plan.raw || !(stop_asked || conn_has_ended(c)) || c->shut || c->heard == c->put || c->put < c->due)
        return 0;
    if (!c->unwatched_at || is_memory_short()) {
        c->unwatched_at = now;
        c->late_unwatched = late;
    }
    return now <= c->unwatched_at + MEMORY_LOOK + slack(c->late_unwatched);
}

/* It is dropped if the line has no room even in the reserve. */
int may_drop_part(const struct client *c)
{
    size_t reserve = plan.max_memory / 2;
    if (plan.max_line && plan.max_line + AREA < reserve)
        reserve = plan.max_line + AREA;
    return plan.handled && !plan.raw && plan.max_memory && c->heard - c->put + 2 * PIECE > reserve;
}

/* A part of a line is sent back once no more of it will come: at the end of input there may be no memory to read it. */
int may_send_part(const struct client *c)
{
    if (plan.handled)
        return 0;
    return c->drained || c->put > c->due || ((stop_asked || conn_has_ended(c)) && is_memory_short());
}

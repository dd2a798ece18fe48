/* poll(2) and epoll(7): which events are returned, and in which order. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>

#include "model.h"

enum { MISSED_MAX = 3 }; /* waits in a row that may leave out an event */

struct watch watches[WATCHES];
int watch_top; /* the watches from here on are unused */

struct set {
    struct watch *all;
    int n;
};

static short events_of(const struct watch *w)
{
    short wanted = (short)(w->events | POLLERR | POLLHUP);
    return (short)(w->file == NULL ? 0 : file_events(w->file) & wanted);
}

static int is_any_ready(void *what)
{
    const struct set *set = what;
    int i;
    for (i = 0; i < set->n; i++)
        if (events_of(&set->all[i]))
            return 1;
    return 0;
}

static int64_t until(int milliseconds)
{
    return milliseconds < 0 ? NEVER : now + milliseconds * MILLISECOND;
}

/* Wait for one of the set. Returns -1 with errno if the wait fails. */
static int wait_for_set(struct set *set, int milliseconds, int error)
{
    int64_t from = now;
    int found;
    if (this_thread == LOOP) {
        rule_wait(set->all, set->n);
        if (happens(plan.interrupt) || (error && happens(plan.scarce))) {
            int err = error && happens(plan.scarce) ? error : EINTR;
            moved++;
            note("the wait fails with errno %ld", err, 0, 0);
            rule_waited(1, milliseconds, 0);
            return fails(err);
        }
    }
    if (!is_any_ready(set) && milliseconds != 0 && !(this_thread == LOOP && happens(plan.spurious)))
        wait_for(is_any_ready, set, until(milliseconds));
    if (this_thread == LOOP && happens(plan.freeze))
        freeze();
    found = is_any_ready(set);
    if (interrupted() && !found) {
        note("the wait is interrupted", 0, 0, 0);
        return fails(EINTR);
    }
    note("a wait of at most %ld ms ends, %ld", milliseconds, found, 0);
    if (this_thread == LOOP)
        rule_waited(found, milliseconds, now - from);
    return found;
}

/* An event of a connection that is none is allowed: the next read or write does not block. */
static short with_spurious(const struct watch *w, short events)
{
    if (events == 0 && this_thread == LOOP && w->file != NULL && w->file->kind == CONN && w->events != POLLRDHUP &&
        happens(plan.spurious)) {
        note("descriptor %ld: an event that is none", w->fd, 0, 0);
        return (short)w->events;
    }
    return events;
}

int wait_nothing(int64_t ns)
{
    struct set none = {NULL, 0};
    wait_for(is_any_ready, &none, now + ns);
    late += ns;
    is_turn_new = 1;
    interrupted();
    return 0;
}

/* ---- poll(2) */

int wait_poll(struct pollfd *fds, size_t n, int milliseconds)
{
    static struct watch polled[THREADS][WATCHES];
    struct set set = {polled[this_thread], (int)n};
    int i, found = 0;
    for (i = 0; i < set.n; i++) {
        set.all[i].fd = fds[i].fd;
        set.all[i].file = fds[i].fd < 0 ? NULL : file_of(fds[i].fd, "poll");
        set.all[i].events = (uint32_t)fds[i].events;
        fds[i].revents = 0;
    }
    if (n == 1 && milliseconds == 0 && set.all[0].file != NULL) {
        fds[0].revents = events_of(&set.all[0]);
        note("descriptor %ld is looked at: %#lx", fds[0].fd, fds[0].revents, 0);
        return fds[0].revents != 0;
    }
    if (wait_for_set(&set, milliseconds, ENOMEM) < 0)
        return -1;
    for (i = 0; i < set.n; i++) {
        fds[i].revents = with_spurious(&set.all[i], events_of(&set.all[i]));
        found += fds[i].revents != 0;
        if (fds[i].revents)
            note("descriptor %ld is ready: %#lx", fds[i].fd, fds[i].revents, 0);
    }
    return found;
}

/* ---- epoll(7) */

static struct watch *watch_of(int fd)
{
    int i;
    for (i = 0; i < watch_top; i++)
        if (watches[i].file != NULL && watches[i].fd == fd)
            return &watches[i];
    return NULL;
}

int watch_change(int what, int fd, struct epoll_event *event)
{
    struct file *f = file_of(fd, "epoll_ctl");
    struct watch *w = watch_of(fd);
    int i;
    if (what == EPOLL_CTL_ADD) {
        if (f->kind == CONN && !f->client->is_watched) /* otherwise it has waited for memory */
            rule_begins(f->client);
        if (w != NULL)
            return fails(EEXIST);
        if (f->kind == CONN && happens(plan.fail)) {
            f->client->failed = happens(512) ? ENOMEM : ENOSPC;
            note("descriptor %ld: it cannot be watched", fd, 0, 0);
            f->client->is_watched = 0;
            return fails(f->client->failed);
        }
        for (i = 0; watches[i].file != NULL; i++)
            ;
        w = &watches[i];
        w->fd = fd;
        w->file = f;
        w->missed = 0;
        if (i >= watch_top)
            watch_top = i + 1;
    } else if (w == NULL) {
        return f->kind == CONN && f->client->failed ? fails(ENOENT) : (broken("descriptor %d is not watched", fd), 0);
    }
    if (what == EPOLL_CTL_DEL) {
        w->file = NULL;
        note("descriptor %ld: is watched no more", fd, 0, 0);
        return 0;
    }
    w->events = event->events;
    w->data = event->data.u64;
    note("descriptor %ld: is watched for %#lx", fd, event->events, 0);
    return 0;
}

int wait_epoll(struct epoll_event *events, int most, int milliseconds)
{
    static struct watch *ready[WATCHES];
    struct set set = {watches, watch_top};
    int i, j, n = 0, found = 0;
    if (wait_for_set(&set, milliseconds, 0) < 0)
        return -1;
    for (i = 0; i < watch_top; i++)
        if (with_spurious(&watches[i], events_of(&watches[i])))
            ready[n++] = &watches[i];
    for (i = n - 1; i > 0; i--) { /* in any order */
        struct watch *other = ready[j = (int)below((uint64_t)i + 1)];
        ready[j] = ready[i];
        ready[i] = other;
    }
    for (i = 0; i < n; i++) {
        short got = events_of(ready[i]);
        if ((found == most || (i + 1 < n && below(4) == 0)) && ready[i]->missed < MISSED_MAX) {
            ready[i]->missed++;
            continue;
        }
        if (found == most)
            continue;
        ready[i]->missed = 0;
        events[found].events = got ? (uint32_t)(unsigned short)got : ready[i]->events;
        events[found].data.u64 = ready[i]->data;
        found++;
        note("descriptor %ld is ready: %#lx", ready[i]->fd, (int64_t)events[found - 1].events, 0);
    }
    return found;
}

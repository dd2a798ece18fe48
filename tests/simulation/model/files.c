/* Descriptors: the lowest free number is used first, as the kernel does. Pipes, and the readiness of each file. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static struct file *files[FDS];

void files_begin(void)
{
    watch_top = 0;
    memset(watches, 0, sizeof watches);
}

int files_left(void)
{
    int i, n = 0;
    for (i = 0; i < FDS; i++)
        if (files[i] != NULL) {
            note("descriptor %ld is open", FIRST_FD + i, 0, 0);
            n++;
        }
    return n;
}

static int number_for(struct file *f)
{
    int i;
    for (i = 0; i < FDS; i++)
        if (files[i] == NULL) {
            files[i] = f;
            return FIRST_FD + i;
        }
    broken("the model has no descriptor left");
}

int file_open(enum kind kind, struct client *c, struct pipe *p)
{
    struct file *f = calloc(1, sizeof *f);
    f->kind = kind;
    f->refs = 1;
    f->client = c;
    f->pipe = p;
    return number_for(f);
}

struct file *file_of(int fd, const char *call)
{
    if (fd < FIRST_FD || fd >= FIRST_FD + FDS || files[fd - FIRST_FD] == NULL)
        broken("%s() of descriptor %d, which is not open", call, fd);
    return files[fd - FIRST_FD];
}

int file_duplicate(int fd)
{
    struct file *f = file_of(fd, "fcntl");
    f->refs++;
    return number_for(f);
}

int file_close(int fd)
{
    struct file *f = file_of(fd, "close");
    int i;
    files[fd - FIRST_FD] = NULL;
    if (--f->refs)
        return 0;
    for (i = 0; i < watch_top; i++)
        if (watches[i].file == f) {
            if (f->kind == CONN)
                broken("close() of descriptor %d, which the poller watches", fd);
            watches[i].file = NULL;
        }
    if (f->kind == CONN) {
        conn_close(f->client);
    } else if (f->kind == LISTENER) {
        rule_queue_closed();
        for (queue_open = 0; queued; queued--)
            client_lose(queue[queued - 1]);
    } else if (f->kind == PIPE_READER || f->kind == PIPE_WRITER) {
        *(f->kind == PIPE_READER ? &f->pipe->readers : &f->pipe->writers) = 0;
        if (!f->pipe->readers && !f->pipe->writers) {
            free(f->pipe->data);
            free(f->pipe);
        }
    }
    free(f);
    return 0;
}

short file_events(const struct file *f)
{
    const struct pipe *p = f->pipe;
    switch (f->kind) {
    case LISTENER:
        return queued ? POLLIN : 0;
    case CONN:
        return conn_events(f->client);
    case PIPE_READER:
        return (short)((p->held ? POLLIN : 0) | (p->writers ? 0 : POLLHUP));
    case PIPE_WRITER:
        return (short)((p->held < p->size ? POLLOUT : 0) | (p->readers ? 0 : POLLERR));
    default:
        return 0;
    }
}

/* ---- pipes */

int pipe_open(int *ends, int nonblocking)
{
    struct pipe *p = calloc(1, sizeof *p);
    p->readers = p->writers = 1;
    p->size = 65536;
    p->data = malloc(p->size);
    ends[0] = file_open(PIPE_READER, NULL, p);
    ends[1] = file_open(PIPE_WRITER, NULL, p);
    file_of(ends[0], "pipe")->is_nonblocking = file_of(ends[1], "pipe")->is_nonblocking = nonblocking;
    return 0;
}

int pipe_resize(struct file *f, size_t n)
{
    f->pipe->size = n;
    f->pipe->data = realloc(f->pipe->data, n);
    return (int)n;
}

static void pipe_take(struct pipe *p, void *data, size_t n)
{
    memcpy(data, p->data, n);
    memmove(p->data, p->data + n, p->held - n);
    p->held -= n;
}

ssize_t pipe_read(struct file *f, void *data, size_t n)
{
    struct pipe *p = f->pipe;
    if (f->kind != PIPE_READER)
        broken("a read of what is no pipe to read from");
    if (n > p->held)
        n = p->held;
    if (n == 0 && p->writers) {
        if (!f->is_nonblocking)
            broken("a read of a pipe waits for ever");
        return fails(EAGAIN);
    }
    pipe_take(p, data, n);
    if (n)
        moved++;
    return (ssize_t)n;
}

static int pipe_has_room(void *f)
{
    return ((struct file *)f)->pipe->held + 8 <= ((struct file *)f)->pipe->size;
}

ssize_t pipe_write(struct file *f, const void *data, size_t n)
{
    struct pipe *p = f->pipe;
    if (f->kind != PIPE_WRITER || n > 8)
        broken("a write to what is no pipe to write to");
    while (p->held + n > p->size) { /* all or nothing: it is less than PIPE_BUF */
        if (f->is_nonblocking)
            return fails(EAGAIN);
        wait_for(pipe_has_room, f, NEVER);
        if (interrupted())
            return fails(EINTR);
    }
    if (!p->readers)
        return fails(EPIPE);
    memcpy(p->data + p->held, data, n);
    p->held += n;
    moved++;
    return (ssize_t)n;
}

/* ---- splice(2), between a connection and a pipe */

ssize_t files_splice(struct file *from, struct file *to, size_t n)
{
    struct pipe *p;
    ssize_t got;
    if (plan.no_splice)
        return fails(plan.no_splice);
    if (to->kind == PIPE_WRITER && from->kind == CONN) {
        p = to->pipe;
        if (n > p->size - p->held)
            n = p->size - p->held;
        if (n == 0)
            return fails(EAGAIN);
        if (!from->client->is_nonblocking)
            broken("splice() from a connection in blocking mode");
        got = conn_receive(from->client, p->data + p->held, n);
        if (got > 0)
            p->held += (size_t)got;
        return got;
    }
    if (from->kind != PIPE_READER || to->kind != CONN)
        broken("splice() of something else than a connection and a pipe");
    p = from->pipe;
    if (n > p->held)
        n = p->held;
    if (n == 0)
        return p->writers ? fails(EAGAIN) : 0;
    got = conn_send(to->client, (unsigned char *)p->data, n, NULL, 0);
    if (got > 0) {
        memmove(p->data, p->data + got, p->held - (size_t)got);
        p->held -= (size_t)got;
    }
    return got;
}

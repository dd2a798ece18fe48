/* Signals of the calling thread: SIGPIPE during a write, and all of them during a call whose result a handler would lose.
 */
#ifndef RIOECHO_SIGNALS_H
#define RIOECHO_SIGNALS_H

#include "compat.h"

/* write(2), which OpenSSL uses too, has no MSG_NOSIGNAL. SIGPIPE is sent to the writing thread, so it is blocked there
 * during the write and then consumed, unless it was pending before. If it is ignored, as Python does at its start, there
 * is nothing to do. */
typedef struct {
    sigset_t before;
    int was_pending;
    int blocked;
} rio_sigpipe;

static inline void rio_sigpipe_block(rio_sigpipe *s)
{
    struct sigaction action;
    sigset_t pipe_only, pending;
    s->blocked = sigaction(SIGPIPE, NULL, &action) < 0 || action.sa_handler != SIG_IGN;
    if (!s->blocked)
        return;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    s->was_pending = sigismember(&pending, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &s->before);
}

static inline void rio_sigpipe_restore(const rio_sigpipe *s)
{
    sigset_t pipe_only, pending;
    if (!s->blocked)
        return;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    if (!s->was_pending && sigismember(&pending, SIGPIPE)) { /* an ignored signal is never pending */
#ifdef __APPLE__
        int ignored;
        sigwait(&pipe_only, &ignored);
#else
        const struct timespec at_once = {0, 0}; /* another thread may have consumed it, if it was sent to the process */
        sigtimedwait(&pipe_only, NULL, &at_once);
#endif
    }
    if (!sigismember(&s->before, SIGPIPE)) /* of the others, code that was called meanwhile may have blocked some */
        pthread_sigmask(SIG_UNBLOCK, &pipe_only, NULL);
}

/* The same around calls of Python that may be suspended while others of this thread begin and end, as those of a greenlet
 * are: SIGPIPE is blocked while any of them is in progress. */
static __thread rio_sigpipe rio_pipe_guard;
static __thread size_t rio_pipe_calls;

static inline void rio_pipe_hold(void)
{
    if (rio_pipe_calls++ == 0 || !rio_pipe_guard.blocked) /* it may be ignored no longer */
        rio_sigpipe_block(&rio_pipe_guard);
}

static inline void rio_pipe_release(void)
{
    if (--rio_pipe_calls == 0)
        rio_sigpipe_restore(&rio_pipe_guard);
}

/* Not inline: the compiler would then not inline fd_write(), which rarely calls it. */
__attribute__((noinline, unused)) static ssize_t rio_write_no_sigpipe(int fd, const void *data, size_t n)
{
    rio_sigpipe guard;
    ssize_t written;
    int saved;
    rio_sigpipe_block(&guard);
    written = write(fd, data, n);
    saved = errno;
    rio_sigpipe_restore(&guard);
    errno = saved;
    return written;
}

/* Block all signals in this thread, until rio_signals_release. _rio/tls.pyx gives the reason. */
static inline void rio_signals_hold(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

/* Block all signals but those that a fault of the thread itself raises, which debuggers and faulthandler need. */
static inline void rio_signals_hold_sent(sigset_t *before)
{
    static const int own[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
    sigset_t sent;
    size_t i;
    sigfillset(&sent);
    for (i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&sent, own[i]);
    pthread_sigmask(SIG_BLOCK, &sent, before);
}

static inline void rio_signals_release(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

#endif

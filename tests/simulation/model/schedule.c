/* The schedule: the clock, the two threads, of which one runs at a time, and the history, which a seed repeats.
 *
 * A thread that waits in a modelled call passes its turn on. When both wait, the clock moves to the next time at which a
 * client acts or a wait ends; nothing sleeps. Where the loop does not hold the GIL, it may be interrupted in the middle of
 * its turn too, so that the accept loop hands over connections, or gets the descriptors that it has just closed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model.h"

enum {
    KEPT = 60,           /* number of events that are printed when a rule is broken */
    CALLS_MAX = 5000000, /* no history needs more */
};

struct plan plan;
int64_t now, late;
int history_on, stop_asked;
int64_t stop_asked_at;
__thread int this_thread = -1;

static struct {
    enum { RUNNABLE, WAITING, GONE } state;
    int (*is_ready)(void *);
    void *what;
    int64_t until;
    int signalled;
    pthread_cond_t turn;
} threads[THREADS] = {{.turn = PTHREAD_COND_INITIALIZER}, {.turn = PTHREAD_COND_INITIALIZER}};
static int running;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t state, hash;
static int64_t started;
static int64_t patience_at; /* the time at which the clients of a server that drains without a limit give up */
static struct {
    int64_t at, a, b, c;
    int thread;
    const char *format;
} kept[KEPT];
static uint64_t noted, calls;
static int (*has_gil)(void);
static int (*set_interrupt)(int);

/* ---- random numbers: splitmix64 */

static uint64_t next_number(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

uint64_t below(uint64_t n)
{
    return n ? next_number() % n : 0;
}

int happens(int rate)
{
    return rate && below(1024) < (uint64_t)rate;
}

/* ---- the history */

static void print(uint64_t i)
{
    char text[200];
    snprintf(text, sizeof text, kept[i % KEPT].format, kept[i % KEPT].a, kept[i % KEPT].b, kept[i % KEPT].c);
    fprintf(stderr, "%15.6f %s %s\n", (double)(kept[i % KEPT].at - started) / 1e9,
            kept[i % KEPT].thread == LOOP ? "loop  " : kept[i % KEPT].thread == ACCEPTOR ? "accept" : "      ", text);
}

void note(const char *format, int64_t a, int64_t b, int64_t c)
{
    const char *p;
    uint64_t numbers[] = {(uint64_t)now, (uint64_t)a, (uint64_t)b, (uint64_t)c, (uint64_t)running};
    size_t i;
    for (p = format; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 0x100000001b3;
    for (i = 0; i < sizeof numbers / sizeof *numbers; i++)
        hash = (hash ^ numbers[i]) * 0x9e3779b97f4a7c15 + (hash >> 29);
    kept[noted % KEPT].at = now;
    kept[noted % KEPT].a = a;
    kept[noted % KEPT].b = b;
    kept[noted % KEPT].c = c;
    kept[noted % KEPT].thread = this_thread;
    kept[noted % KEPT].format = format;
    if (plan.trace)
        print(noted);
    noted++;
}

void broken(const char *format, ...)
{
    va_list arguments;
    uint64_t i;
    history_on = 0;
    if (!plan.trace)
        for (i = noted > KEPT ? noted - KEPT : 0; i < noted; i++)
            print(i);
    fprintf(stderr, "seed %llu: ", (unsigned long long)plan.seed);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nThe whole history: python tests/simulation/run.py --seed %llu --trace\n",
            (unsigned long long)plan.seed);
    fflush(NULL);
    _exit(3);
}

int fails(int err)
{
    errno = err;
    return -1;
}

/* ---- the threads */

static void stop(void)
{
    int i;
    stop_asked = 1;
    stop_asked_at = now;
    patience_at = now + (plan.max_memory ? 20 : 100000) * SECOND;
    note("the signal to stop", 0, 0, 0);
    for (i = 0; i < plan.clients; i++)
        clients[i].at_stop = clients[i].arrived;
    threads[ACCEPTOR].signalled = 1;
    set_interrupt(SIGTERM); /* its handler runs in the thread of the accept loop, as the main thread */
}

static void act(void)
{
    if (!stop_asked && now >= started + plan.stop_at)
        stop();
    if (clients_next() <= now)
        clients_act();
    if (now >= patience_at && plan.drain < 0) {
        patience_at = now + 10 * SECOND;
        clients_give_up();
    }
}

static int can_run(int i)
{
    if (threads[i].state != WAITING)
        return threads[i].state == RUNNABLE;
    return threads[i].signalled || threads[i].until <= now || threads[i].is_ready(threads[i].what);
}

static int64_t soonest(void)
{
    int64_t time = clients_next();
    int i;
    for (i = 0; i < THREADS; i++)
        if (threads[i].state == WAITING && threads[i].until < time)
            time = threads[i].until;
    return time;
}

/* Choose the thread that runs next, letting time pass until there is one; -1 if both are gone. */
static int choose(void)
{
    int64_t time;
    int first, second;
    for (;;) {
        act();
        if (threads[ACCEPTOR].state == GONE && threads[LOOP].state == GONE)
            return -1;
        first = can_run(ACCEPTOR);
        second = can_run(LOOP);
        if (first && second)
            return (int)below(2);
        if (first || second)
            return first ? ACCEPTOR : LOOP;
        time = soonest();
        if (!stop_asked && (time == NEVER || time > started + plan.stop_at))
            time = time == NEVER ? now + MILLISECOND : started + plan.stop_at;
        else if (time == NEVER) {
            if (!clients_give_up())
                broken("both threads wait for something that will not happen");
            continue;
        }
        if (!stop_asked && soonest() == NEVER) {
            now = time;
            stop();
        } else if (time > now) {
            now = time;
        }
    }
}

/* Pass the turn on, and wait until it comes back. */
static void pass(void)
{
    int next = choose();
    if (next == this_thread)
        return;
    pthread_mutex_lock(&lock);
    running = next;
    if (next >= 0)
        pthread_cond_signal(&threads[next].turn);
    while (threads[this_thread].state != GONE && running != this_thread)
        pthread_cond_wait(&threads[this_thread].turn, &lock);
    pthread_mutex_unlock(&lock);
}

int call_begin(void)
{
    int64_t cost = (int64_t)below(2 * MICROSECOND);
    if (this_thread < 0 || running != this_thread)
        broken("a thread without a turn makes a call");
    if (++calls > CALLS_MAX)
        broken("the history does not end");
    now += cost;
    late += cost;
    act();
    if (plan.preempt && threads[!this_thread].state != GONE && happens(plan.preempt) && !has_gil()) {
        note("is interrupted", 0, 0, 0);
        threads[this_thread].state = RUNNABLE;
        pass();
    }
    return 0;
}

void wait_for(int (*is_ready)(void *), void *what, int64_t until)
{
    threads[this_thread].is_ready = is_ready;
    threads[this_thread].what = what;
    threads[this_thread].until = until;
    threads[this_thread].state = WAITING;
    pass();
    threads[this_thread].state = RUNNABLE;
}

int interrupted(void)
{
    int was = threads[this_thread].signalled;
    threads[this_thread].signalled = 0;
    return was;
}

void freeze(void)
{
    static const int64_t times[] = {3 * MILLISECOND, SECOND, 20 * SECOND, 600 * SECOND};
    int64_t time = 1 + (int64_t)below((uint64_t)times[below(4)]), until = now + time;
    note("the process is suspended for %ld ns", time, 0, 0);
    while (clients_next() < until || (!stop_asked && started + plan.stop_at < until)) {
        now = clients_next() < started + plan.stop_at || stop_asked ? clients_next() : started + plan.stop_at;
        act();
    }
    now = until;
    late += time; /* at the end, for the deadlines of what happens meanwhile */
    act();
}

/* ---- what the script calls */

void history_begin(const struct plan *chosen)
{
    int i;
    if (has_gil == NULL) {
        has_gil = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Check");
        set_interrupt = (int (*)(int))dlsym(RTLD_DEFAULT, "PyErr_SetInterruptEx");
    }
    plan = *chosen;
    state = plan.seed * 0x2545f4914f6cdd1d + 1;
    hash = 0xcbf29ce484222325;
    noted = calls = 0;
    started = now = SECOND * 1000000000 + (int64_t)below(SECOND);
    late = 0;
    stop_asked = 0;
    stop_asked_at = patience_at = NEVER;
    for (i = 0; i < THREADS; i++) {
        threads[i].state = RUNNABLE;
        threads[i].signalled = 0;
    }
    running = this_thread = ACCEPTOR;
    files_begin();
    clients_begin();
    rules_begin();
    history_on = 1;
}

/* The calling thread is that of the loop; it returns when it has the turn. */
void history_loop_begins(void)
{
    this_thread = LOOP;
    pthread_mutex_lock(&lock);
    while (running != LOOP)
        pthread_cond_wait(&threads[LOOP].turn, &lock);
    pthread_mutex_unlock(&lock);
}

void history_loop_ends(void)
{
    note("the loop ends", 0, 0, 0);
    threads[LOOP].state = GONE;
    pass();
}

static int loop_is_gone(void *ignored)
{
    (void)ignored;
    return threads[LOOP].state == GONE;
}

/* Wait until the loop has ended. */
void history_join(void)
{
    interrupted();
    wait_for(loop_is_gone, NULL, NEVER);
}

/* End the history. Returns its hash. */
uint64_t history_end(struct counts *found)
{
    rule_end();
    *found = counts;
    history_on = 0;
    clients_end();
    return hash;
}

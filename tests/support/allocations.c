/* Makes allocations fail; preloaded by test_failing_allocations.py. After allocation_arm(k, n), n allocations fail,
 * from the k-th on: those of C code, of Python (with PYTHONMALLOC=malloc) and of the C library itself, in every thread
 * except the caller's, and in a forked child. allocation_fired() reports whether one has failed.
 *
 * It calls glibc's internal names, because dlsym() allocates memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *data, size_t n);

static atomic_int armed, countdown, width, fired;
static pthread_t exempt;

void allocation_arm(int k, int n)
{
    exempt = pthread_self();
    countdown = k;
    width = n;
    fired = 0;
    armed = 1;
}

void allocation_disarm(void)
{
    armed = 0;
}

int allocation_fired(void)
{
    return fired;
}

static int fails(void)
{
    int left;
    if (!armed || pthread_equal(exempt, pthread_self()))
        return 0;
    left = --countdown;
    if (left > 0 || left <= -width)
        return 0;
    fired = 1;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n)
{
    return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *data, size_t n)
{
    return fails() ? NULL : __libc_realloc(data, n);
}

/* Preloaded by test_failing_allocations.py: the k-th allocation after allocation_arm() fails, whoever makes it: C, Python
 * (with PYTHONMALLOC=malloc) or the C library itself, in every thread but the one that armed, and in a forked child.
 *
 * allocation_fired() says whether it came before allocation_disarm(). glibc's names for its own functions are used, for
 * dlsym() allocates.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *data, size_t n);

static atomic_int armed, countdown, fired;
static pthread_t exempt;

void allocation_arm(int k)
{
    exempt = pthread_self();
    countdown = k;
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
    if (!armed || pthread_equal(exempt, pthread_self()) || --countdown != 0)
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

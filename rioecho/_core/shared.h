/* State that threads share: counters, values that are read without a lock, and the flag of which each side of a Rio has
 * one.
 */
#ifndef RIOECHO_SHARED_H
#define RIOECHO_SHARED_H

#include "compat.h"

/* Counters that several threads, or processes with shared memory, update and read. Adding returns the sum. */
static inline uint64_t rio_atomic_add(uint64_t *count, uint64_t n)
{
    return __atomic_add_fetch(count, n, __ATOMIC_SEQ_CST);
}

/* Set a counter to n if it is 0. Reports whether it was. */
static inline int rio_atomic_claim(uint64_t *count, uint64_t n)
{
    uint64_t expected = 0;
    return __atomic_compare_exchange_n(count, &expected, n, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static inline uint64_t rio_atomic_load(const uint64_t *count)
{
    return __atomic_load_n(count, __ATOMIC_SEQ_CST);
}

/* Counters that only one thread writes: as cheap as a plain addition, and readers never see a partial update. */
static inline uint64_t rio_load_relaxed(const uint64_t *count)
{
    return __atomic_load_n(count, __ATOMIC_RELAXED);
}

static inline void rio_store_relaxed(uint64_t *count, uint64_t n)
{
    __atomic_store_n(count, n, __ATOMIC_RELAXED);
}

static inline void rio_add_relaxed(uint64_t *count, uint64_t n)
{
    rio_store_relaxed(count, rio_load_relaxed(count) + n);
}

static inline void rio_bool_set(int *flag, int value)
{
    __atomic_store_n(flag, value, __ATOMIC_SEQ_CST);
}

static inline int rio_bool_get(const int *flag)
{
    return __atomic_load_n(flag, __ATOMIC_SEQ_CST);
}

/* Return an identifier of the calling thread, unique among running threads and unchanged in the child of a fork. */
static inline uintptr_t rio_this_thread(void)
{
#if defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
    return (uintptr_t)__builtin_thread_pointer();
#else
    return (uintptr_t)pthread_self();
#endif
}

/* A flag that one caller at a time can take: a lock without waiting, which records its holder. Its value is the thread
 * identifier of the holder or one of these states. In builds with the GIL, every user holds the GIL. */
#define RIO_FREE ((uintptr_t)0)
#define RIO_CLOSED ((uintptr_t)1) /* final */
#define RIO_LOST ((uintptr_t)2)   /* final: the holder does not exist in this child of a fork, and the guarded state may
                                     be inconsistent */
#define RIO_LEFT ((uintptr_t)3)   /* as RIO_RESTING, but of no thread: it does not exist in this child of a fork, or has
                                     no need of the flag any more. Any thread can take it, and first tidies up */
/* A thread may keep a flag for itself between its calls. The flag then rests in this state, and only that thread can take
 * it. The identifiers of threads are even, because they are addresses. */
#define RIO_RESTING(thread) ((thread) | 1)

typedef struct {
    uintptr_t holder;
    uintptr_t rest; /* the state between two calls: RIO_FREE, RIO_RESTING of a thread, or RIO_LEFT */
} rio_flag;

#ifdef Py_GIL_DISABLED
#define RIO_HAS_GIL 0
#else
#define RIO_HAS_GIL 1
#endif

static inline uintptr_t rio_flag_state(const rio_flag *flag)
{
#ifdef Py_GIL_DISABLED
    return __atomic_load_n(&flag->holder, __ATOMIC_ACQUIRE);
#else
    return flag->holder;
#endif
}

/* Take the flag if it is in this state. Reports whether it was. */
static inline int rio_flag_take_from(rio_flag *flag, uintptr_t state)
{
#ifdef Py_GIL_DISABLED
    return __atomic_compare_exchange_n(
        &flag->holder, &state, rio_this_thread(), 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
#else
    if (flag->holder != state)
        return 0;
    flag->holder = rio_this_thread();
    return 1;
#endif
}

static inline int rio_flag_take(rio_flag *flag)
{
    return rio_flag_take_from(flag, RIO_FREE);
}

static inline uintptr_t rio_flag_rest(const rio_flag *flag)
{
#ifdef Py_GIL_DISABLED
    return __atomic_load_n(&flag->rest, __ATOMIC_RELAXED);
#else
    return flag->rest;
#endif
}

/* Release the flag: set it to RIO_FREE or RIO_CLOSED. For its holder only. */
static inline void rio_flag_put(rio_flag *flag, uintptr_t state)
{
    rio_assert(flag->holder == rio_this_thread());
#ifdef Py_GIL_DISABLED
    __atomic_store_n(&flag->holder, state, __ATOMIC_RELEASE);
#else
    flag->holder = state;
#endif
}

/* Release the flag at the end of a call. For its holder only. */
static inline void rio_flag_release(rio_flag *flag)
{
    rio_flag_put(flag, rio_flag_rest(flag));
}

/* Let the flag rest as RIO_LEFT, for any thread, when the call in progress releases it. For any thread. */
static inline void rio_flag_let_go(rio_flag *flag)
{
#ifdef Py_GIL_DISABLED
    __atomic_store_n(&flag->rest, RIO_LEFT, __ATOMIC_SEQ_CST);
#else
    flag->rest = RIO_LEFT;
#endif
}

/* Notice, after the release and a fence, a rio_flag_let_go() that came during the release. */
static inline void rio_flag_settle(rio_flag *flag)
{
#ifdef Py_GIL_DISABLED
    uintptr_t kept = RIO_RESTING(rio_this_thread());
    if (rio_flag_rest(flag) == RIO_LEFT)
        __atomic_compare_exchange_n(&flag->holder, &kept, RIO_LEFT, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
#else
    (void)flag;
#endif
}

/* Take a flag that rests for this thread, or for none (RIO_LEFT); with ``any``, one that rests for any thread. Reports
 * whether it was. */
static inline int rio_flag_resume(rio_flag *flag, int any)
{
    uintptr_t state = rio_flag_state(flag);
    int rests = any ? state > RIO_LEFT && state == RIO_RESTING(state) : state == RIO_RESTING(rio_this_thread());
    return (rests || state == RIO_LEFT) && rio_flag_take_from(flag, state);
}

/* Let the flag rest for this thread from the next release on, or no longer. For its holder only. */
static inline void rio_flag_keep(rio_flag *flag, int keep)
{
    uintptr_t rest = keep ? RIO_RESTING(rio_this_thread()) : RIO_FREE;
#ifdef Py_GIL_DISABLED
    __atomic_store_n(&flag->rest, rest, __ATOMIC_RELAXED);
#else
    flag->rest = rest;
#endif
}

/* Take and release a flag for a few instructions that run no Python code: with the GIL, checking that it is free is
 * enough. */
static inline int rio_flag_take_briefly(rio_flag *flag)
{
    return RIO_HAS_GIL ? rio_flag_state(flag) == RIO_FREE : rio_flag_take(flag);
}

static inline void rio_flag_put_briefly(rio_flag *flag)
{
    if (!RIO_HAS_GIL)
        rio_flag_put(flag, RIO_FREE);
}

static inline int rio_flag_closed(const rio_flag *flag)
{
    return rio_flag_state(flag) == RIO_CLOSED;
}

/* Order the release of a flag before the reads that follow it. With the GIL there is nothing to order. */
static inline void rio_flag_fence(void)
{
#ifdef Py_GIL_DISABLED
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Report whether another thread holds the flag, or keeps it for itself. */
static inline int rio_flag_busy(const rio_flag *flag)
{
    uintptr_t state = rio_flag_state(flag);
    return state > RIO_LEFT && RIO_RESTING(state) != RIO_RESTING(rio_this_thread());
}

/* Report whether the flag rests for this thread. */
static inline int rio_flag_rests(const rio_flag *flag)
{
    return rio_flag_state(flag) == RIO_RESTING(rio_this_thread());
}

/* Report whether this thread holds the flag, in a call that a signal handler, a finalizer or a fileno() interrupted. */
static inline int rio_flag_mine(const rio_flag *flag)
{
    return rio_flag_state(flag) == rio_this_thread();
}

/* Set the state of a flag that another thread held, in the child of a fork, which has only the calling thread. */
static inline void rio_flag_orphan(rio_flag *flag, uintptr_t state)
{
    uintptr_t ours = RIO_RESTING(rio_this_thread());
    if (flag->rest != RIO_FREE && flag->rest != ours) {
        flag->rest = RIO_LEFT; /* until a call has tidied up */
        if (state == RIO_FREE)
            state = RIO_LEFT;
    }
    if (flag->holder > RIO_LEFT && RIO_RESTING(flag->holder) != ours)
        flag->holder = state;
}

/* A lock for a few instructions that run no Python code. With the GIL it is empty: the GIL is the lock. */
#ifdef Py_GIL_DISABLED
typedef PyMutex rio_mutex;
#define rio_mutex_lock(mutex) PyMutex_Lock(mutex)
#define rio_mutex_unlock(mutex) PyMutex_Unlock(mutex)
#else
typedef char rio_mutex;
#define rio_mutex_lock(mutex) ((void)(mutex))
#define rio_mutex_unlock(mutex) ((void)(mutex))
#endif

/* Values that one thread writes under a lock and others read as a hint. */
static inline int64_t rio_time_get(const int64_t *ns)
{
    return __atomic_load_n(ns, __ATOMIC_RELAXED);
}

static inline void rio_time_set(int64_t *ns, int64_t value)
{
    __atomic_store_n(ns, value, __ATOMIC_RELAXED);
}

static inline uintptr_t rio_thread_get(const uintptr_t *thread)
{
    return __atomic_load_n(thread, __ATOMIC_ACQUIRE);
}

static inline void rio_thread_set(uintptr_t *thread, uintptr_t value)
{
    __atomic_store_n(thread, value, __ATOMIC_RELEASE);
}

static inline size_t rio_size_get(const size_t *n)
{
    return __atomic_load_n(n, __ATOMIC_RELAXED);
}

static inline void rio_size_set(size_t *n, size_t value)
{
    __atomic_store_n(n, value, __ATOMIC_RELAXED);
}

#endif

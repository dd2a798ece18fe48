/* splice(2), which moves bytes between a socket and a pipe without copying them. Only Linux has it; on other systems
 * there is no pipe for it.
 */
#ifndef RIOECHO_SPLICE_H
#define RIOECHO_SPLICE_H

#include "compat.h"

#ifdef __linux__

/* Create a non-blocking pipe that holds at least `least` bytes, and `size` bytes if that is allowed. Returns its
 * capacity, or 0, and no pipe, if there is none to be had. */
static inline size_t rio_splice_pipe(int *ends, size_t least, size_t size)
{
    int got;
    if (rio_pipe(ends) < 0)
        return 0;
    (void)fcntl(ends[1], F_SETPIPE_SZ, (int)size); /* limited by /proc/sys/fs/pipe-max-size and by the user's total */
    got = fcntl(ends[1], F_GETPIPE_SZ);
    if (got >= 0 && (size_t)got >= least)
        return (size_t)got < size ? (size_t)got : size;
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* Move up to n bytes without blocking, from or to a pipe. Returns their number, 0 at EOF, or -1 with errno. */
static inline ssize_t rio_splice(int from, int to, size_t n)
{
    return splice(from, NULL, to, NULL, n, SPLICE_F_NONBLOCK);
}

#else

static inline size_t rio_splice_pipe(int *ends, size_t least, size_t size)
{
    (void)ends, (void)least, (void)size;
    return 0;
}

static inline ssize_t rio_splice(int from, int to, size_t n)
{
    (void)from, (void)to, (void)n;
    errno = ENOSYS;
    return -1;
}

#endif

#endif

"""Flags and forks: the list of all flags that are alive, which the child of a fork walks.

A fork copies one thread. In the child, a flag that another thread held would stay taken for ever; here it becomes free,
or lost where what it guards may be half changed. What the forking thread held stays its own: it goes on with its call.

With the GIL, and in free-threaded builds with the world stopped, no thread is inside the functions below at a fork.
"""

import os

from rioecho._core.posix cimport rio_flag_orphan, rio_mutex, rio_mutex_lock, rio_mutex_unlock


cdef rio_mutex guard
cdef flag_set all_flags   # the ends of the list

all_flags.next = all_flags.prev = &all_flags


cdef void flags_link(flag_set *s) noexcept:
    """Add an object's flags."""
    rio_mutex_lock(&guard)
    s.next = &all_flags
    s.prev = all_flags.prev
    s.prev.next = s
    all_flags.prev = s
    rio_mutex_unlock(&guard)


cdef void flags_unlink(flag_set *s) noexcept:
    """Take an object's flags out, before its memory goes; do nothing if they were never added."""
    if s.next == NULL:
        return
    rio_mutex_lock(&guard)
    s.prev.next = s.next
    s.next.prev = s.prev
    rio_mutex_unlock(&guard)
    s.next = s.prev = NULL


def _after_fork_in_child():
    cdef flag_set *s = all_flags.next
    cdef rio_flag *flag
    while s != &all_flags:
        for flag in s.flags:
            if flag != NULL:
                rio_flag_orphan(flag, s.orphaned)
        s = s.next


os.register_at_fork(after_in_child=_after_fork_in_child)

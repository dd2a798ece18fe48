"""Flags and forks: the list of all flags, which the child of a fork goes through.

A fork copies only the calling thread, so in the child nobody would release a flag that another thread held. It becomes
free, or lost if the state that it guards may be inconsistent. A flag held by the forking thread stays held: that call
continues in the child.

No thread is inside the functions below during a fork: they hold the GIL, and free-threaded builds stop the world.
"""

import os

from rioecho._core.posix cimport rio_flag_orphan, rio_mutex, rio_mutex_lock, rio_mutex_unlock


cdef rio_mutex guard
cdef flag_set all_flags   # the head of the circular list

all_flags.next = all_flags.prev = &all_flags


cdef void flags_link(flag_set *s) noexcept:
    """Add an object's flags to the list."""
    rio_mutex_lock(&guard)
    s.next = &all_flags
    s.prev = all_flags.prev
    s.prev.next = s
    all_flags.prev = s
    rio_mutex_unlock(&guard)


cdef void flags_unlink(flag_set *s) noexcept:
    """Remove an object's flags, before its memory is freed. Has no effect if they were not added."""
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

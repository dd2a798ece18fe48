# Which flags are alive, for the sake of fork(2); see flag.pyx. What a flag is stands in compat.h.

from libc.stdint cimport uintptr_t

from rioecho._core.posix cimport rio_flag


cdef struct flag_set:
    # The flags of one object, in the list of all. The object owns this memory and does not move.
    flag_set *next
    flag_set *prev
    rio_flag *flags[3]    # NULL behind the last
    uintptr_t orphaned    # the state of a flag whose holder did not come along through a fork


cdef void flags_link(flag_set *s) noexcept
cdef void flags_unlink(flag_set *s) noexcept

# The list of all flags, for the child of a fork; see flag.pyx. The flag itself is in shared.h.

from libc.stdint cimport uintptr_t

from rioecho._core.posix cimport rio_flag


cdef struct flag_set:
    # The flags of one object, an element of the list. The object owns this memory and does not move.
    flag_set *next
    flag_set *prev
    rio_flag *flags[4]    # followed by NULLs
    uintptr_t orphaned    # the new state, in the child of a fork, of a flag that another thread held


cdef void flags_link(flag_set *s) noexcept
cdef void flags_unlink(flag_set *s) noexcept

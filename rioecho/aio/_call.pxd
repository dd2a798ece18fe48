# The awaitable of one call that reads; see aio/_call.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rioecho._rio.fed cimport Fed, request


cdef enum call_state:
    NEW
    WAITING
    DONE


cdef class Awaited(Fed):
    cdef int begin(self, Call call) except -1
    cdef object wait(self, Call call, bint again)
    cdef void finish(self, Call call) noexcept


cdef class Call:
    cdef Awaited owner
    cdef request asked
    cdef call_state state
    cdef bint iterates      # whether an empty answer ends an `async for`
    cdef bint expired       # whether its time is over
    cdef object given       # the timeout argument; ... for that of the owner
    cdef object separator   # of readuntil(), which `asked` borrows
    cdef object task        # that has made the call, if a frame was open then
    cdef object waiter      # the iterator of the future that it waits for
    cdef str name
    cdef int64_t timeout    # in nanoseconds; -1 for none
    cdef int64_t deadline   # the time at which it ends, from the first wait on; 0 before

    cdef int stop(self) except -1


cdef inline Call new_call(Awaited owner, str name, object timeout):
    """Return a call, of which the caller then asks something."""
    cdef Call call = Call.__new__(Call)
    call.owner = owner
    call.name = name
    call.given = timeout
    return call

# The awaitable of one call that reads; see aio/_call.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rioecho._rio.fed cimport Fed, request


cdef enum call_state:
    NEW
    WAITING
    DONE


cdef class Awaited(Fed):
    cdef bint paused   # whether the transport is not read from
    cdef object spare  # what came, or is to come, when there was no memory for a larger buffer; else None

    cdef bint asleep(self, Call call) noexcept
    cdef int take_spare(self) except -1
    cdef void read_on(self) noexcept
    cdef int begin(self, Call call) except -1
    cdef object wait(self, Call call, bint again)
    cdef void finish(self, Call call) noexcept


cdef class Call:
    cdef Awaited owner
    cdef request asked
    cdef call_state state
    cdef bint iterates      # whether an empty answer ends an `async for`
    cdef object given       # the timeout argument; ... for that of the owner
    cdef object separator   # of readuntil(), which `asked` borrows
    cdef Py_buffer target   # of readinto() and readinto1(), to which `asked` points; obj is NULL if there is none
    cdef object task        # that has made the call, if a frame was open then
    cdef object waiter      # the iterator of the future that it waits for
    cdef str name
    cdef int64_t timeout    # in nanoseconds; -1 for none
    cdef int64_t deadline   # the time at which it ends, from the first wait on; 0 before

    cdef int aim(self, object buffer) except -1
    cdef void end(self) noexcept


cdef inline Call new_call(Awaited owner, str name, object timeout):
    """Return a call, of which the caller then asks something."""
    cdef Call call = Call.__new__(Call)
    call.owner = owner
    call.name = name
    call.given = timeout
    return call

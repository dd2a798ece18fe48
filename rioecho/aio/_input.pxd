# The call that waits for what comes on a Rio of asyncio; see aio/_input.pyx.

from libc.stdint cimport int64_t

from rioecho.aio._arrival cimport Arrival
from rioecho.aio._call cimport Call
from rioecho.aio._protocol cimport Protocol


cdef class Input(Arrival):
    cdef object __weakref__
    cdef object loop
    cdef Protocol protocol   # the object that the loop calls
    cdef object frame_task   # the task in which the outermost frame was entered
    cdef object timer        # the handle of the callback that looks at the time, or None
    cdef int64_t timer_at
    cdef int64_t timeout_ns, idle_ns

    cdef int exclude(self, object task) except -1
    cdef int let_go(self, object waiter) except -1
    cdef int before_wait(self) except -1
    cdef int arm(self, int64_t when) except -1
    cdef int64_t time_left(self, Call call) except? -1
    cdef int raise_late(self, Call call) except -1

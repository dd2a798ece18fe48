# What a Rio of asyncio has received, and the call that waits for more; see aio/_input.pyx.

from libc.stdint cimport int64_t

from rioecho.aio._call cimport Awaited, Call


cdef class Input(Awaited):
    cdef object __weakref__
    cdef object loop
    cdef object transport    # None before the connection is made and after it is lost
    cdef Protocol protocol   # the object that the loop calls
    cdef Call reader         # the call that waits, or None
    cdef object waiter       # its future
    cdef object frame_task   # the task in which the outermost frame was entered
    cdef object error        # what ended the connection; None for an orderly end
    cdef object lost_waiter  # the future of the end of the connection
    cdef object timer        # the handle of the callback that looks at the time, or None
    cdef int64_t timer_at
    cdef int64_t timeout_ns, idle_ns
    cdef bint woken          # whether the call that waits is to try again
    cdef char *lent          # where the loop stores what comes; NULL if not in the buffer
    cdef size_t spare_size   # number of bytes in it
    cdef int64_t came        # when bytes last came, if there is an idle timeout
    cdef bint can_read      # whether the transport is one that is read from
    cdef bint lost           # whether the connection has ended
    cdef bint has_closed     # whether close() or abort() was called

    cdef bint tls
    cdef bint choked(self) noexcept
    cdef int exclude(self, object task) except -1
    cdef int came_new(self) except -1
    cdef int read_last_words(self) except -1
    cdef int read_decrypted(self, object tls) except -1
    cdef int let_go(self, object waiter) except -1
    cdef int raise_late(self, Call call) except -1
    cdef int connect(self, object transport) except -1
    cdef int stall(self, bint stalled) except -1
    cdef int pump(self) except -1
    cdef int before_wait(self) except -1
    cdef int wake(self) except -1
    cdef int steer(self) except -1
    cdef object room(self, Py_ssize_t hint)
    cdef int came_in(self, size_t n) except -1
    cdef int came_copy(self, object data) except -1
    cdef int end_input(self) except -1
    cdef int lose(self, object error) except -1
    cdef int shut(self) except -1
    cdef int raise_lost(self) except -1
    cdef int arm(self, int64_t when) except -1
    cdef int tick(self) except -1
    cdef int64_t time_left(self, Call call) except? -1


cdef class Protocol:
    cdef object owner       # a weak reference to the Input
    cdef Input reading      # the same while a call waits, so that the loop keeps it alive
    cdef Input writing
    cdef object made        # called when the connection is made, or None

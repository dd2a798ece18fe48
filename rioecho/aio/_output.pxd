# What a Rio of asyncio has to send; see aio/_output.pyx.

from libc.stdint cimport int64_t, uint64_t

from rioecho.aio._input cimport Input


cdef class Output(Input):
    cdef list chunks          # of bytes: accepted, and not yet given to the transport
    cdef size_t offset        # number of bytes of the first of them that were given
    cdef size_t queued        # number of bytes in them, without those
    cdef uint64_t taken       # number of bytes accepted in all
    cdef uint64_t given       # number of bytes given to the transport in all
    cdef size_t held_back     # number of bytes that the transport had when it took no more
    cdef bint scheduled       # whether the loop will call pump()
    cdef bint stalled         # whether the transport takes no more
    cdef bint ended_output    # whether write_eof() was called
    cdef bint output_lost     # whether accepted output was lost with the connection
    cdef bint writer          # whether writen(), flush() or write_eof() is in progress
    cdef object sent          # the future of the call that waits until output was sent, or None

    cdef Py_ssize_t accept(self, object data) except -1
    cdef int check_output(self) except -1
    cdef int schedule(self) except -1
    cdef int begin_output(self, str name) except -1
    cdef size_t unsent(self) except? 0
    cdef object next_chunk(self)
    cdef bint out(self, uint64_t mark) noexcept

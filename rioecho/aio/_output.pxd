# What a Rio of asyncio has to send; see aio/_output.pyx.

from libc.stdint cimport int64_t, uint64_t

from rioecho.aio._input cimport Input


cdef class Output(Input):
    cdef list chunks          # of bytes: accepted, and not yet given to the transport
    cdef size_t offset        # number of bytes of the first of them that were given
    cdef size_t queued        # number of bytes in them, without those
    cdef uint64_t taken       # number of bytes accepted in all
    cdef uint64_t given       # number of bytes given to the transport in all
    cdef uint64_t gone        # number of bytes that are known to have been sent
    cdef size_t held_back     # number of bytes that the transport had when it took no more
    cdef bint scheduled       # whether the loop will call pump()
    cdef bint stalled         # whether the transport takes no more: it holds unsent bytes
    cdef bint securing        # whether a TLS handshake is in progress: nothing may be sent
    cdef bint turning         # whether start_tls() sends what was written before: what comes is left to TLS
    cdef bint ended_output    # whether write_eof() was called, or there is no way to write
    cdef bint output_lost     # whether accepted output was lost with the connection, and no call has said so
    cdef bint aborted         # whether abort() was called
    cdef bint writer          # whether writen(), flush(), write_eof() or start_tls() is in progress
    cdef bint is_readable, is_writable   # what the descriptor is open for
    cdef bint is_socket
    cdef list drains          # the futures of the calls that wait until output was sent
    cdef object raw           # the transport below TLS, or None

    cdef Py_ssize_t accept(self, object data) except -1
    cdef int check_output(self) except -1
    cdef int schedule(self) except -1
    cdef int begin_output(self, str name) except -1
    cdef object bottom(self)
    cdef size_t unsent(self) except? 0
    cdef object next_chunk(self)
    cdef int raise_unsent(self) except -1
    cdef int wake_drains(self) except -1
    cdef int drop_output(self) except -1

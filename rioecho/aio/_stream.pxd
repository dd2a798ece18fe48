# What a StreamReader holds, and what its protocol receives; see aio/_stream.pyx.

from rioecho._rio.fed cimport request
from rioecho.aio._call cimport Call
from rioecho.aio._held cimport Holder


cdef class StreamBase(Holder):
    cdef public object _loop
    cdef public object _waiter      # the future that the next byte, or the end, makes done; None if nobody waits
    cdef public object _exception
    cdef public object _transport
    cdef public bint _paused        # whether the transport is not read from
    cdef object limit               # as it was set; `line_limit` is the number of bytes
    cdef Call reader                # the call that waits, or None
    cdef object future              # its future

    cdef ssize_t end(self, request *r) except -1
    cdef ssize_t whole_line(self) except -1
    cdef ssize_t whole_until(self) except -1
    cdef int overrun(self, bint found, size_t n) except -1
    cdef int incomplete_read(self, object expected) except -1
    cdef int wake(self) except -1
    cdef int fed(self) except -1
    cdef int resume_transport(self) except -1
    cdef object room(self, Py_ssize_t hint)
    cdef int came_in(self, size_t n) except -1


cdef class ProtocolBase:
    cdef object target              # a weak reference to the reader whose memory was lent, until bytes are stored there
    cdef bytearray scratch          # for a protocol, or a reader, with a data_received() or feed_data() of its own

    cdef bint is_direct(self, object reader) except -1

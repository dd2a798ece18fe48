# What an event loop reports to its owner; see reports.pyx.

from libc.stdint cimport int64_t

from rioecho._server.handling cimport Handling
from rioecho._server.loop cimport conn_t, loop_t


cdef class Reports:
    cdef object on_closed
    cdef object on_opened
    cdef object on_line
    cdef Handling handling
    cdef int64_t quiet_until   # until then no error of a callback is logged
    cdef void report(self, loop_t *l) noexcept
    cdef void release(self, conn_t *c) noexcept
    cdef void report_opening(self, conn_t *c) noexcept
    cdef void report_line(self, size_t n) noexcept
    cdef bint report_closing(self, conn_t *c) noexcept
    cdef void log_error(self, error) noexcept

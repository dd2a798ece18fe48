# How an event loop calls the handlers of a LineServer; see handling.pyx.

from rioecho._server.lineconnection cimport Connection, Output
from rioecho._server.loop cimport conn_t, reason


cdef class Handling(Output):
    cdef object handler           # a class, or a function
    cdef bint raw
    cdef size_t max_line          # SIZE_MAX: no limit
    cdef list taken               # the posts that the loop is working on, in reverse order
    cdef bint is_taking           # whether it is
    cdef size_t too_long          # length of the line that was too long in this call, or 0
    cdef bint enter(self, Connection conn) except -1
    cdef reason leave(self, conn_t *c, Connection conn, object error) noexcept
    cdef list split(self, const char *first, size_t before, const char *data, size_t n)
    cdef reason made(self, conn_t *c) noexcept
    cdef reason received(
        self, conn_t *c, const char *first, size_t before, const char *data, size_t n, size_t rest
    ) noexcept
    cdef conn_t *next_post(self, reason *why) noexcept
    cdef bint lost(self, conn_t *c) noexcept

# How an event loop calls the handlers of a LineServer; see handling.pyx.

from libc.stdint cimport uint64_t

from rioecho._core.posix cimport rio_source
from rioecho._server.loop cimport conn_t, handler_t, loop_t, outlet_t, reason
from rioecho._server.notify cimport WakePipe


cdef class Handling:
    cdef handler_t h
    cdef loop_t *loop             # NULL before it runs
    cdef WakePipe wake            # made readable by a post of another thread
    cdef readonly object handler  # a class, or a function
    cdef readonly bint raw
    cdef size_t max_line          # SIZE_MAX: no limit
    cdef size_t write_limit       # SIZE_MAX: no limit
    cdef int pid                  # of the process that serves
    cdef unsigned long thread     # that runs the loop, or 0
    cdef list posted              # connections that something was asked of
    cdef list taken               # those of them that the loop is working on, in reverse order
    cdef bint is_taking           # whether it is
    cdef Connection current       # the connection whose handler is being called, or None
    cdef size_t too_long          # length of the line that was too long in this call, or 0
    cdef void begin(self, loop_t *loop) noexcept
    cdef void end(self) noexcept
    cdef int post(self, Connection conn) except -1
    cdef int enter(self, Connection conn) except -1
    cdef reason leave(self, Connection conn, object error) noexcept
    cdef void leave_child(self, object error) noexcept
    cdef list split(self, const char *first, size_t before, const char *data, size_t n)
    cdef int append(self, Connection conn, object data) except -1
    cdef int append_answer(self, Connection conn, object answer) except -1
    cdef bint append_all(self, Connection conn, list items) except -1
    cdef int append_queue(self, Connection conn) except -1
    cdef reason made(self, conn_t *c) noexcept
    cdef reason received(
        self, conn_t *c, const char *first, size_t before, const char *data, size_t n, size_t rest
    ) noexcept
    cdef conn_t *next_post(self, reason *why) noexcept
    cdef bint lost(self, conn_t *c) noexcept


cdef class Connection:
    cdef Handling handling
    cdef conn_t *c                # NULL before the loop has it, and after its end
    cdef outlet_t outlet          # shared with the loop
    cdef object handler           # the object of the class, or None before it is made and after the end
    cdef list queue               # what was written and not yet given to the loop, or None
    cdef rio_source source        # of the peer
    cdef object path              # of the unix socket, or None
    cdef object error             # the exception that ends it, or None
    cdef object sock              # get_extra_info("socket"), or None
    cdef reason wish              # why the handler wants it to be closed, or OPEN
    cdef bint is_posted           # whether it is in the list of the Handling
    cdef bint is_made             # whether connection_lost() is due
    cdef bint is_over             # whether nothing more can be written
    cdef public bint announced    # whether "Connected to" was logged
    cdef bint in_its_call(self) noexcept
    cdef int ask(self, reason wish) except -1
    cdef int must_be_open(self) except -1
    cdef bint fits(self, size_t n) noexcept
    cdef int must_fit(self, size_t n) except -1

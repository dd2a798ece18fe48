# The connection that a handler of a LineServer gets; see lineconnection.pyx.

from rioecho._core.posix cimport rio_source
from rioecho._server.loop cimport conn_t, handler_t, loop_t, outlet_t, reason
from rioecho._server.notify cimport WakePipe


cdef class Output:
    cdef handler_t h
    cdef loop_t *loop             # NULL before it runs
    cdef WakePipe wake            # made readable by a post of another thread
    cdef size_t write_limit       # SIZE_MAX: no limit
    cdef int generation           # of the process that serves
    cdef unsigned long thread     # that runs the loop, or 0
    cdef list posted              # connections that something was asked of
    cdef Connection current       # the connection whose handler is being called, or None
    cdef bint in_child(self) noexcept
    cdef void send_early(self, conn_t *c) noexcept
    cdef void begin(self, loop_t *loop) noexcept
    cdef void end(self) noexcept
    cdef int enlist(self, Connection conn) except -1
    cdef void tell(self) noexcept
    cdef int append(self, Connection conn, object data) except -1
    cdef int append_answer(self, Connection conn, object answer) except -1
    cdef bint append_all(self, Connection conn, list items) except -1
    cdef int append_queue(self, Connection conn) except -1


cdef class Connection:
    cdef Output output
    cdef conn_t *c                # NULL before the loop has it, and after its end
    cdef outlet_t outlet          # shared with the loop
    cdef object handler           # the object of the class, or None before it is made and after the end
    cdef list queue               # what was written and not yet given to the loop, or None
    cdef rio_source source        # of the peer
    cdef object path              # of the unix socket, or None
    cdef object error             # the exception that ends it, or None
    cdef object sock              # get_extra_info("socket"), or None
    cdef reason wish              # why the handler wants it to be closed, or OPEN
    cdef bint is_posted           # whether it is in the list of posts
    cdef bint is_made             # whether connection_lost() is due
    cdef bint is_over             # whether nothing more can be written
    cdef public bint announced    # whether "Connected to" was logged
    cdef bint in_its_call(self) noexcept
    cdef int ask(self, reason wish) except -1
    cdef int must_be_open(self) except -1
    cdef bint fits(self, size_t n) noexcept
    cdef int must_fit(self, size_t n) except -1
    cdef object duplicate(self)

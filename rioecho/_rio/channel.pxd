# The state of a Rio and its flags; see _rio/channel.pyx.

from rioecho._core.buffer cimport rio_buffer
from rioecho._core.fdio cimport rio_fd
from rioecho._core.posix cimport rio_flag
from rioecho._rio.framing cimport Framing
from rioecho._rio.input cimport leave
from rioecho._rio.transport cimport Transport


cdef enum ownership:
    BORROWED   # closing the Rio leaves the descriptor open
    OWNED      # closing the Rio closes it; dropping the Rio warns and closes it
    AS_FILE    # like the standard library's socket files: dropping the Rio flushes and closes it


# Each flag guards the fields named beside it, and `reading` those of the base classes. Only a caller that holds
# `reading` and `writing` may close the Rio or free memory. Properties take no flag: they read what is constant, what is
# written with relaxed atomics, or an object that is read and replaced in a critical section.
cdef class Channel(Framing):
    cdef rio_fd f
    cdef rio_flag writing    # the writing methods; held for a whole call
    cdef rio_flag sending    # `out`, `out_error` and `reset`, for callers of either side
    cdef rio_flag lent       # held while a write has borrowed `reading`, or waits for it
    cdef int at_send         # whether `sending` was taken to send, and not only to check
    cdef bint can_read
    cdef bint can_write
    cdef bint takes_output   # whether it can, and write_eof() has not been called
    cdef ownership own
    cdef rio_buffer out
    cdef object source       # the descriptor as it was passed; kept alive
    cdef object waker        # the object that has the descriptor which wakes calls, or None
    cdef object clock        # a socket whose gettimeout() is called for every call, or None
    cdef Transport transport   # moves the bytes if the source's I/O is not its descriptor's, else None
    cdef object out_error    # an error of sending during a read, for the next write or flush
    cdef bint reset          # a write got ECONNRESET, which the next EOF is reported as
    cdef object raw          # of a file: its socket.SocketIO, until detach()
    cdef list waiting        # a locked lock for each thread that waits until a side is free, or None
    cdef rio_buffer aside    # memory that is not in use, and holds nothing
    cdef object __weakref__

    cdef int open(self, object source, int fd, size_t bufsize, size_t line_limit) except -1
    cdef bint await_return(self) except -1
    cdef bint take_in_turn(self, rio_flag *side) except -1
    cdef bint stands_in_way(self) noexcept
    cdef object new_gate(self)
    cdef bint enter_both(self) except -1
    cdef int check_open(self) except -1
    cdef bint raw_closed(self) except -1
    cdef object forget(self)
    cdef int check_owner(self) except -1


cdef inline void leave_writing(Channel self) noexcept:
    leave(self, &self.writing)

# A child process of the process engine as its parent sees it; see _server/child.pyx.

from rioecho._core.budget cimport Share
from rioecho._core.posix cimport rio_source
from rioecho._server.childside cimport report_t
from rioecho._server.hosts cimport HostTable, host_t


cdef class Child:
    cdef bint begun          # whether the next fields are set: an object whose arguments are refused is all zeros
    cdef int fd              # reading end of the pipe for its reports, or -1
    cdef int report_fd       # writing end of that pipe, until the fork
    cdef int verdict[2]      # pipe for the answer to its PROXY header, or -1; with both ends open it raises no SIGPIPE
    cdef bint is_answered
    cdef rio_source own      # the address of the connection itself
    cdef HostTable hosts     # where its connection is counted for its address
    cdef host_t *host
    cdef int pid             # 0 before the fork
    cdef int status
    cdef bint reported_end
    cdef report_t last
    cdef Child next          # in the list of children
    cdef Share memory        # the memory it holds; deallocation returns that of a killed child to the budget
    cdef readonly str peer
    cdef public bint announced   # whether "Connected to" was logged
    cdef void close_pipe(self) noexcept
    cdef void wait(self) noexcept

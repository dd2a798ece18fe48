# The transport of a Rio over an OpenSSL.SSL.Connection; see _rio/pyopenssl.pyx.

from libc.stdint cimport int64_t

from rioecho._core.flag cimport flag_set
from rioecho._core.posix cimport rio_flag, rio_sigpipe
from rioecho._rio.transport cimport Transport


cdef class PyOpenSsl(Transport):
    # `source` is the connection.
    cdef rio_flag busy         # guards the connection and the fields below, except those marked atomic
    cdef flag_set flags
    cdef bytes begun           # a record that OpenSSL has begun to send, or None
    cdef int broken            # the errno of the end of the connection; EPIPE if the peer ended it in order
    cdef int64_t own_timeout   # the socket's own timeout in nanoseconds, -1 for none; atomic
    cdef rio_sigpipe sigpipe   # signal state of the thread in an operation: OpenSSL's writes may raise SIGPIPE

    cdef bint take(self) except -1
    cdef void put(self) noexcept
    cdef object begin(self)
    cdef void restore(self, object settimeout) noexcept
    cdef void set_begun(self, bytes record) noexcept
    cdef bint is_over(self, object error) except -1
    cdef object plain_error(self, object error)
    cdef object reason(self, object ssl, object result)
    cdef ssize_t read_nothing(self, object error, short *want) except -2
    cdef int send_record(self, bytes record, short *want) except -1

# The transport of a Rio over an OpenSSL.SSL.Connection; see _rio/pyopenssl.pyx.

from rioecho._rio.tlsturns cimport TlsTurns


cdef class PyOpenSsl(TlsTurns):
    cdef int broken   # the errno of the end of the connection; EPIPE if the peer ended it in order

    cdef bint is_over(self, object error) except -1
    cdef object plain_error(self, object error)
    cdef object reason(self, object ssl, object result)
    cdef ssize_t read_nothing(self, object error, short *want) except -2
    cdef int send_record(self, bytes record, short *want) except -1

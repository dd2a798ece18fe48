"""What the loop calls: class Protocol, the protocol of the transport of a Rio of asyncio."""

from weakref import ref

from rioecho.aio._room cimport Lender


cdef enum:
    SCRATCH = 1 << 16   # size of the memory for bytes that nobody reads: the Rio was closed or dropped


cdef object scratch():
    """Return memory for bytes that nobody reads."""
    return memoryview(bytearray(SCRATCH))


cdef class Endpoint(Lender):
    """What a Protocol tells the Rio."""

    cdef int connect(self, object transport) except -1:
        """Take over a transport."""
        raise NotImplementedError

    cdef object room(self, Py_ssize_t hint):
        """Return writable memory for what comes; ``hint`` is the number of bytes expected, if more than 0."""
        raise NotImplementedError

    cdef int came_in(self, size_t n) except -1:
        """Hold n more bytes, which the loop has stored in ``room()``."""
        raise NotImplementedError

    cdef int came_copy(self, object data) except -1:
        """Hold the bytes of ``data`` too. If there is no memory for a copy, keep the object until there is."""
        raise NotImplementedError

    cdef int end_input(self) except -1:
        """Note the end of the input."""
        raise NotImplementedError

    cdef int lose(self, object error) except -1:
        """Note the end of the connection."""
        raise NotImplementedError

    cdef int stall(self, bint stalled) except -1:
        """Note that the transport takes no more output, or that it does again."""
        raise NotImplementedError

    cdef int pump(self) except -1:
        """Give the buffered output to the transport."""
        raise NotImplementedError

    cdef int tick(self) except -1:
        """Look at the time of the call that waits."""
        raise NotImplementedError


cdef class Protocol:
    """What the loop calls.

    It has no strong reference to the Rio unless a call waits, so that one that is dropped unclosed is noticed.
    """

    def __cinit__(self, Endpoint owner not None, made=None):
        self.owner = ref(owner)
        self.made = made
        if made is not None:
            self.reading = owner   # until the connection is made

    def connection_made(self, transport):
        cdef Endpoint owner = self.owner()
        if owner is None:
            transport.abort()
        else:
            owner.connect(transport)
            made, self.made, self.reading = self.made, None, None
            if made is not None:
                made(owner)

    def get_buffer(self, sizehint):
        cdef Endpoint owner = self.owner()
        return scratch() if owner is None else owner.room(sizehint)

    def buffer_updated(self, nbytes):
        cdef Endpoint owner = self.owner()
        if owner is not None:
            owner.came_in(nbytes)

    def data_received(self, data):
        cdef Endpoint owner = self.owner()
        if owner is not None:
            owner.came_copy(data)

    def eof_received(self):
        """Note the end of the input, and keep the connection open for output where that is possible."""
        cdef Endpoint owner = self.owner()
        if owner is None:
            return False
        owner.end_input()
        return not owner.tls

    def connection_lost(self, error):
        cdef Endpoint owner = self.owner()
        if owner is not None:
            owner.lose(error)

    def pause_writing(self):
        cdef Endpoint owner = self.owner()
        if owner is not None and not owner.tls:
            owner.stall(True)

    def resume_writing(self):
        cdef Endpoint owner = self.owner()
        if owner is not None and not owner.tls:
            owner.stall(False)

    def stall(self, stalled):
        """Note what the transport below TLS says of its output."""
        cdef Endpoint owner = self.owner()
        if owner is not None:
            owner.stall(stalled)

    def tick(self):
        """Look at the clock."""
        cdef Endpoint owner = self.owner()
        if owner is not None:
            owner.tick()

    def pump(self):
        """Send what was written in the last turn of the loop."""
        cdef Endpoint owner = self.owner()
        if owner is not None:
            owner.pump()

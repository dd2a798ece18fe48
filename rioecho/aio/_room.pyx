"""The memory behind the held bytes, lent to the loop, which stores there what comes: classes Lender and Room.

The loop has a memoryview of it. Nobody can know how long a view lives: an exception's traceback may keep it. While one
exists, the memory is not freed: a buffer that grows or shrinks gets other memory, and the view keeps the old block.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject

from libc.string cimport memmove

from rioecho._core.buffer cimport buffer_added, buffer_held, buffer_reserve, buffer_room, memory_give, rio_buffer
from rioecho._core.posix cimport rio_mutex, rio_mutex_lock, rio_mutex_unlock
from rioecho._rio.fed cimport HOLD, INTO, NUMBER, request
from rioecho._rio.input cimport enter, leave_reading
from rioecho.aio._call cimport Awaited


cdef loan *loans = NULL
cdef rio_mutex loans_lock


cdef void abandon(char *data) noexcept nogil:
    """Leave a block to its views; what a buffer calls to free memory that is lent."""
    cdef loan *each
    rio_mutex_lock(&loans_lock)
    each = loans
    while each != NULL:
        if each.data == data:
            each.abandoned = True
        each = each.next
    rio_mutex_unlock(&loans_lock)


cdef void link(loan *block) noexcept nogil:
    global loans
    rio_mutex_lock(&loans_lock)
    block.next = loans
    loans = block
    rio_mutex_unlock(&loans_lock)


cdef bint unlink(loan *block) noexcept nogil:
    """Remove a loan from the list. Reports whether it was the last one of its block."""
    cdef loan **at
    cdef loan *each
    cdef bint last = True
    global loans
    rio_mutex_lock(&loans_lock)
    at = &loans
    while at[0] != block:
        at = &at[0].next
    at[0] = block.next
    each = loans
    while each != NULL and last:
        last = each.data != block.data
        each = each.next
    rio_mutex_unlock(&loans_lock)
    return last


cdef class Lender(Awaited):
    cdef size_t wanted(self, Py_ssize_t hint) noexcept:
        """Return for how many more bytes there is to be room, at least 1. ``hint`` is that of the loop."""
        raise NotImplementedError

    cdef object lend(self, Py_ssize_t hint):
        """Return a view of writable memory behind the held bytes; None if there is no memory."""
        cdef Room room
        cdef size_t held
        enter(self, &self.reading)
        try:
            held = buffer_held(&self.inp)
            if buffer_reserve(&self.inp, held + self.wanted(hint)) < 0 and buffer_reserve(&self.inp, held + 1) < 0:
                self.lent = NULL
                return None
            self.lent = self.inp.data + self.inp.w
            room = Room.__new__(Room)
            room.owner = self
            return PyMemoryView_FromObject(room)
        finally:
            leave_reading(self)

    cdef int store(self, size_t n) except -1:
        """Hold n more bytes, which the loop has stored in the memory that was lent."""
        enter(self, &self.reading)
        try:
            if self.lent != self.inp.data + self.inp.w:   # a finalizer, run in between, has moved the held bytes
                if buffer_reserve(&self.inp, buffer_held(&self.inp) + n) < 0:
                    raise MemoryError
                memmove(self.inp.data + self.inp.w, self.lent, n)
            buffer_added(&self.inp, n)
        finally:
            leave_reading(self)
        return 0


cdef size_t missing(Lender self, request *r) noexcept:
    """Return how many bytes a request is known to lack, at least 1, and not many times as many as are held."""
    cdef size_t held = buffer_held(&self.inp), whole = 0
    if r.what == NUMBER or r.what == HOLD or (r.what == INTO and r.strict):
        whole = min(r.n, held * 2 + self.inp.base)
    return whole - held if whole > held else 1


@cython.final
@cython.freelist(8)
@cython.no_gc_clear   # a collection would take the owner before the view is released
cdef class Room:
    """Exports the memory of a buffer, from the first free byte on, to one view, which may be sliced."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef rio_buffer *b = &self.owner.inp
        if self.lent or b.data == NULL:
            raise BufferError("the memory is lent once")
        PyBuffer_FillInfo(view, self, b.data + b.w, buffer_room(b), False, flags)
        self.lent = True
        self.block.data = b.data
        self.block.cap = b.cap
        self.block.mapped = b.mapped
        self.block.abandoned = False
        b.give = abandon
        link(&self.block)

    def __releasebuffer__(self, Py_buffer *view):
        if not unlink(&self.block):
            return
        if self.block.abandoned:
            memory_give(self.block.data, self.block.cap, self.block.mapped)
        else:
            self.owner.inp.give = NULL

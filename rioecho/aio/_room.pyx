"""The memory behind the held bytes, lent to the loop, which stores there what comes: class Room.

The loop has a memoryview of it. Nobody can know how long a view lives: an exception's traceback may keep it. While one
exists, the memory is not freed: a buffer that grows or shrinks gets other memory, and the view keeps the old block.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject

from rioecho._core.buffer cimport buffer_room, memory_give, rio_buffer
from rioecho._core.posix cimport rio_mutex, rio_mutex_lock, rio_mutex_unlock
from rioecho._rio.framing cimport Framing


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


cdef object lend(Framing owner):
    """Return a writable view of the memory behind the bytes that ``owner`` holds, where room was reserved."""
    cdef Room room = Room.__new__(Room)
    room.owner = owner
    return PyMemoryView_FromObject(room)


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

"""The input buffer: who may use it, the frames that keep what was read from it, and the calls that wait for nothing.

Every method of a Rio that reads, and every one of a Feed, is a call: it enters, which takes the flag ``reading`` or
raises, and leaves. A ``Frame`` keeps the bytes that are read while it is open, so that several calls are one: all or
nothing. The rules that say how many bytes a call takes are in _rio/framing.pyx.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_Clear
from libc.stdint cimport SIZE_MAX
from libc.string cimport memcmp

from rioecho._core.buffer cimport (
    buffer_free,
    buffer_held,
    buffer_insert,
    buffer_mark,
    buffer_reserve,
    buffer_rewind,
    buffer_trim,
    buffer_unmark,
    rio_buffer,
)
from rioecho._core.flag cimport flags_link, flags_unlink
from rioecho._core.posix cimport (
    RIO_FREE,
    RIO_HAS_GIL,
    RIO_LEFT,
    rio_bool_get,
    rio_bool_set,
    rio_flag,
    rio_flag_closed,
    rio_flag_fence,
    rio_flag_keep,
    rio_flag_let_go,
    rio_flag_resume,
    rio_flag_state,
    rio_size_get,
)

from rioecho.errors import ConcurrentCall


cdef void give_back(Input self) noexcept:
    """Free the memory that a long frame has left when it was consumed. Not inline, as consume() calls it rarely."""
    buffer_trim(&self.inp, buffer_held(&self.inp))


cdef bytes leave_without_memory(Input self):
    """End a call with the ``MemoryError`` that is set: leaving may run Python, which no exception may be set for."""
    PyErr_Clear()
    try:
        raise MemoryError
    finally:
        leave_reading(self)


cdef class Input:
    def __cinit__(self):
        self.flags.flags[0] = &self.reading
        self.flags.orphaned = RIO_FREE   # the other thread's call was waiting or running Python: the state is valid
        flags_link(&self.flags)

    def __dealloc__(self):
        flags_unlink(&self.flags)
        buffer_free(&self.inp)

    # ---- entering

    cdef int wait_turn(self, rio_flag *side) except -1:
        """Begin a call of a side that could not be entered at once, or raise the reason."""
        if not self.resume(False):
            self.refuse(side)
        return 0

    cdef int refuse(self, rio_flag *side) except -1:
        """Raise the reason why a side could not be entered."""
        raise ConcurrentCall("another call is using this object, in another thread or under this signal handler")

    cdef bint resume(self, bint any) noexcept:
        """Enter the reading side in a frame of this thread; with ``any``, of any thread. Reports whether there is one.

        The frames of a thread that does not exist in this child of a fork, and those dropped, are undone first.
        """
        cdef bint left = rio_flag_state(&self.reading) == RIO_LEFT
        if not rio_flag_resume(&self.reading, any):
            return False
        if left:
            self.end_frames(None, True)
        else:
            self.end_dropped()
        return True

    # ---- frames

    def frame(self):
        """Return a context manager that makes the reads in its block one read: all of them, or none.

        If the block ends by an exception, everything that was read in it is held again, followed by what has come
        since, and the same code can be run again: after a timeout, for example, it then reads the whole frame. Blocks
        nest; leaving one ends those inside it. Entering returns the object that is read from.

        The block is a call of the reading side: another thread gets ``ConcurrentCall``. What is read in it is kept in
        memory until it ends. ``detach()`` in it returns what follows the bytes read so far; after ``close()``, leaving
        it has no effect.
        """
        return Frame(self)

    cdef int entering_frame(self) except -1:
        """Raise if no frame can be entered, for another reason than a call in progress. Here is none."""
        return 0

    cdef void end_frames(self, Mark last, bint rewind) noexcept:
        """End the innermost frames through ``last``, or all of them; hold again what was read in the last one."""
        cdef Mark mark
        cdef size_t before = 0, skipped = 0
        while self.innermost is not None:
            mark = self.innermost
            before = mark.before
            skipped = mark.skipped
            mark.is_open = False
            self.innermost = mark.outer
            mark.outer = None
            if mark is last:
                break
        if rewind and in_frame(self):
            buffer_rewind(&self.inp, before)
            self.skipped = skipped
        if self.innermost is None:
            buffer_unmark(&self.inp)
            give_back(self)
            rio_flag_keep(&self.reading, False)

    cdef void end_dropped(self) noexcept:
        """Undo the frames that were dropped during a call, and those inside them."""
        cdef Mark mark = self.innermost, last = None
        while mark is not None:
            if rio_bool_get(&mark.dropped):
                last = mark
            mark = mark.outer
        if last is not None:
            self.end_frames(last, True)

    cdef void call_waiting(self) noexcept:
        """Wake the threads that wait for their turn. Only a subclass that lets them wait sets ``crowded``."""
        raise NotImplementedError

    # ---- calls that wait for nothing

    @property
    def buffered(self):
        """The number of bytes in the input buffer: received and not yet read.

        ``select()`` and ``poll()`` do not report them. Raises ``ValueError`` if the owner is closed.
        """
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return buffer_held(&self.inp) if RIO_HAS_GIL else rio_size_get(&self.shown)

    def read_buffered(self):
        """Return all buffered bytes and remove them from the buffer."""
        enter(self, &self.reading)
        try:
            return take(self, buffer_held(&self.inp))
        finally:
            leave_reading(self)

    def unread(self, data, /):
        """Put ``data``, a bytes-like object, in front of the buffered bytes, so that it is read next.

        It may come from another reader, or be what a protocol has read too much. Returns its length. In a ``frame()``,
        bytes that were just read in it become unread; others are new ones. On ``MemoryError`` nothing has changed.
        """
        cdef Py_buffer view
        cdef rio_buffer *b = &self.inp
        cdef size_t n
        cdef object count
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            enter(self, &self.reading)
            try:
                n = view.len
                count = n
                if n == 0:
                    return count
                if not self.hold_again(<const char *>view.buf, n):
                    self.note_foreign()
                    if in_frame(self) or b.r < n:
                        if n > SIZE_MAX - buffer_held(b) or buffer_reserve(b, buffer_held(b) + n) < 0:
                            raise MemoryError
                    buffer_insert(b, <const char *>view.buf, n)
                self.skipped = 0
                return count
            finally:
                leave_reading(self)
        finally:
            PyBuffer_Release(&view)

    cdef int note_foreign(self) except -1:
        """Prepare for bytes in front of the held ones that are not the source's. Without a source there is no need."""
        return 0

    cdef bint hold_again(self, const char *data, size_t n) noexcept:
        """Hold again the last n bytes read in the innermost frame if they are ``data``."""
        cdef rio_buffer *b = &self.inp
        cdef size_t read
        if not in_frame(self):
            return False
        read = b.r - b.mark
        if n > read - self.innermost.before or memcmp(b.data + b.r - n, data, n) != 0:
            return False
        buffer_rewind(b, read - n)
        return True


@cython.final
@cython.freelist(8)
cdef class Mark:
    pass


@cython.final
@cython.freelist(8)
@cython.no_gc_clear   # a collection would take the owner before __dealloc__ has told it
cdef class Frame:
    """The context manager of ``frame()``."""

    def __cinit__(self, Input owner not None):
        self.owner = owner
        self.mark = Mark.__new__(Mark)

    def __dealloc__(self):
        """Undo the frame if it was not left.

        An exception came between __enter__() and the block, or another thread dropped a generator that had entered it.
        If a call is in progress, in another thread or in this one, which it has interrupted, that is done after it.
        """
        cdef Input owner = self.owner
        cdef Mark mark = self.mark
        if mark is None or not mark.is_open:
            return
        if not owner.resume(True):
            rio_bool_set(&mark.dropped, True)
            if mark.outermost:
                rio_flag_let_go(&owner.reading)
            rio_flag_fence()
            if not owner.resume(True):
                return
        if mark.is_open:
            owner.end_frames(mark, True)
        leave_reading(owner)
        let_others_in(owner)

    def __enter__(self):
        cdef Input owner = self.owner
        cdef Mark mark = self.mark
        enter(owner, &owner.reading)
        try:
            if self.entered:
                raise ValueError("this frame has been entered before; call frame() for each block")
            owner.entering_frame()
            self.entered = mark.is_open = True
            mark.skipped = owner.skipped
            mark.outer = owner.innermost
            mark.outermost = mark.outer is None
            if mark.outermost:
                buffer_mark(&owner.inp)
                rio_flag_keep(&owner.reading, True)
            mark.before = owner.inp.r - owner.inp.mark
            owner.innermost = mark
        finally:
            leave_reading(owner)
        return owner

    def __exit__(self, exc_type, exc, traceback):
        """Leave the frame, in any thread: a generator may be closed in another one."""
        cdef Input owner = self.owner
        cdef Mark mark = self.mark
        if not mark.is_open:   # an outer frame was left first
            return False
        if not owner.resume(True):
            if rio_flag_closed(&owner.reading):
                return False
            owner.refuse(&owner.reading)   # a call is in progress
        if mark.is_open:
            owner.end_frames(mark, exc_type is not None or mark.starved)
        leave_reading(owner)
        let_others_in(owner)
        return False

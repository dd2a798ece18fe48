# The input buffer, its flag and its frames; see _rio/input.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport buffer_consume, buffer_held, buffer_start, rio_buffer
from rioecho._core.flag cimport flag_set
from rioecho._core.posix cimport (
    RIO_HAS_GIL,
    rio_assert,
    rio_bool_get,
    rio_bytes_new,
    rio_bytes_taken,
    rio_flag,
    rio_flag_fence,
    rio_flag_mine,
    rio_flag_release,
    rio_flag_settle,
    rio_flag_take,
    rio_rare,
    rio_size_set,
)


cdef class Mark:
    # Where an open frame() began.
    cdef Mark outer          # that of the frame around this one
    cdef bint outermost
    cdef size_t before       # number of bytes read in the outer frames when this one began
    cdef size_t skipped
    cdef bint is_open
    cdef bint starved        # whether a read in it has returned None for want of bytes: it is not complete
    cdef int dropped         # whether the Frame was dropped during a call, after which this is to be undone; atomic


cdef class Input:
    cdef rio_flag reading    # guards all fields below, and those of class Framing; held for a whole call
    cdef flag_set flags
    cdef rio_buffer inp
    cdef size_t shown        # without the GIL: number of bytes in `inp`, for callers that do not hold `reading`
    cdef size_t skipped      # number of bytes that an interrupted skip() or skipline() has discarded
    cdef int crowded         # whether threads wait for their turn; atomic
    cdef Mark innermost      # of the open frame that was entered last, or None

    cdef int wait_turn(self, rio_flag *side) except -1
    cdef int refuse(self, rio_flag *side) except -1
    cdef bint resume(self, bint any) noexcept
    cdef int entering_frame(self) except -1
    cdef void end_frames(self, Mark last, bint rewind) noexcept
    cdef void end_dropped(self) noexcept
    cdef void call_waiting(self) noexcept
    cdef int note_foreign(self) except -1
    cdef bint hold_again(self, const char *data, size_t n) noexcept


cdef class Frame:
    cdef Input owner
    cdef Mark mark
    cdef bint entered


cdef inline int enter(Input self, rio_flag *side) except -1:
    """Begin a call of one side. If another call is in progress, wait for it or raise; raise if the owner is closed."""
    if not rio_flag_take(side):
        return self.wait_turn(side)
    return 0


cdef inline void show_held(Input self) noexcept:
    """Publish the number of buffered bytes for callers without ``reading``. With the GIL they can read it directly."""
    if not RIO_HAS_GIL:
        rio_size_set(&self.shown, buffer_held(&self.inp))


cdef inline void let_others_in(Input self) noexcept:
    """Wake the threads that wait for their turn. Called wherever a call has waited."""
    if rio_bool_get(&self.crowded):
        self.call_waiting()


cdef inline void leave(Input self, rio_flag *side) noexcept:
    rio_flag_release(side)
    if not RIO_HAS_GIL:   # with the GIL, nobody can have begun to wait since the last let_others_in()
        rio_flag_fence()
        rio_flag_settle(side)
        let_others_in(self)


cdef inline void leave_reading(Input self) noexcept:
    show_held(self)
    leave(self, &self.reading)


cdef inline bint in_frame(Input self) noexcept:
    """Report whether a frame is open, so that consumed bytes are kept."""
    return self.inp.mark != SIZE_MAX


cdef void give_back(Input self) noexcept


cdef inline void consume(Input self, size_t n) noexcept:
    """Remove the first n bytes from the input buffer, after the caller has copied them."""
    rio_assert(rio_flag_mine(&self.reading))
    buffer_consume(&self.inp, n)
    self.skipped = 0
    if rio_rare(self.inp.cap > self.inp.base):
        give_back(self)


cdef inline bytes take(Input self, size_t n):
    """Return the first n bytes of the input buffer and remove them."""
    cdef PyObject *result = rio_bytes_new(buffer_start(&self.inp), n)
    if result != NULL:
        consume(self, n)
    return rio_bytes_taken(result)


cdef bytes leave_without_memory(Input self)


cdef inline bytes take_and_leave(Input self, size_t n):
    """End a call by ``take()``.

    For a call in which nothing else can raise: it needs no ``try``, whose preparations cost the calls that succeed.
    """
    cdef PyObject *result = rio_bytes_new(buffer_start(&self.inp), n)
    if rio_rare(result == NULL):
        return leave_without_memory(self)
    consume(self, n)
    leave_reading(self)
    return rio_bytes_taken(result)

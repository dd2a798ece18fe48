# What has been received, and the rules by which it is taken in lines and frames; see _rio/framing.pyx.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport buffer_consume, buffer_held, buffer_start, rio_buffer
from rioecho._core.flag cimport flag_set
from rioecho._core.posix cimport (
    RIO_HAS_GIL,
    rio_assert,
    rio_bool_get,
    rio_flag,
    rio_flag_fence,
    rio_flag_mine,
    rio_flag_release,
    rio_flag_settle,
    rio_flag_take,
    rio_rare,
    rio_size_set,
)


cdef enum:
    MORE = -2   # as the length of a frame: bytes are missing, and the input has not ended


cdef class Mark:
    # Where an open frame() began.
    cdef Mark outer          # that of the frame around this one
    cdef bint outermost
    cdef size_t before       # number of bytes read in the outer frames when this one began
    cdef size_t skipped
    cdef bint is_open
    cdef bint starved        # whether a read in it has returned None for want of bytes: it is not complete
    cdef int dropped         # whether the Frame was dropped during a call, after which this is to be undone; atomic


cdef class Framing:
    cdef rio_flag reading    # guards all fields below; held for a whole call
    cdef flag_set flags
    cdef rio_buffer inp
    cdef size_t shown        # without the GIL: number of bytes in `inp`, for callers that do not hold `reading`
    cdef size_t line_limit
    cdef size_t skipped      # number of bytes that an interrupted skip() or skipline() has discarded
    cdef object sep          # the separator, or the tuple of them, that inp.sep_scanned refers to
    cdef int crowded         # whether threads wait for their turn; atomic
    cdef Mark innermost      # of the open frame that was entered last, or None

    cdef int wait_turn(self, rio_flag *side) except -1
    cdef int refuse(self, rio_flag *side) except -1
    cdef bint resume(self, bint any) noexcept
    cdef int entering_frame(self) except -1
    cdef void end_frames(self, Mark last, bint rewind) noexcept
    cdef void end_dropped(self) noexcept
    cdef void call_waiting(self) noexcept
    cdef bint hold_again(self, const char *data, size_t n) noexcept
    cdef void discard(self, size_t n) noexcept

    cdef ssize_t line_end(self, size_t limit, bint cut, bint ended) except -1
    cdef ssize_t separator_end(self, size_t limit, bint ended) except -1
    cdef ssize_t bytes_end(self, size_t n, bint exactly, bint ended) except -1
    cdef ssize_t payload_end(self, size_t width, bint little, size_t limit, bint ended, size_t *need) except -1
    cdef ssize_t skipline_end(self, bint ended) except -1
    cdef ssize_t skip_end(self, size_t n, bint ended) except -1
    cdef list take_lines(self, size_t n)
    cdef object take_payload(self, size_t width, ssize_t n)
    cdef object drop(self, size_t n)
    cdef int set_separator(self, object sep) except -1
    cdef int incomplete(self, object expected) except -1


cdef class Frame:
    cdef Framing owner
    cdef Mark mark
    cdef bint entered


cdef inline int enter(Framing self, rio_flag *side) except -1:
    """Begin a call of one side. If another call is in progress, wait for it or raise; raise if the owner is closed."""
    if not rio_flag_take(side):
        return self.wait_turn(side)
    return 0


cdef inline void show_held(Framing self) noexcept:
    """Publish the number of buffered bytes for callers without ``reading``. With the GIL they can read it directly."""
    if not RIO_HAS_GIL:
        rio_size_set(&self.shown, buffer_held(&self.inp))


cdef inline void let_others_in(Framing self) noexcept:
    """Wake the threads that wait for their turn. Called wherever a call has waited."""
    if rio_bool_get(&self.crowded):
        self.call_waiting()


cdef inline void leave(Framing self, rio_flag *side) noexcept:
    rio_flag_release(side)
    if not RIO_HAS_GIL:   # with the GIL, nobody can have begun to wait since the last let_others_in()
        rio_flag_fence()
        rio_flag_settle(side)
        let_others_in(self)


cdef inline void leave_reading(Framing self) noexcept:
    show_held(self)
    leave(self, &self.reading)


cdef inline bint in_frame(Framing self) noexcept:
    """Report whether a frame is open, so that consumed bytes are kept."""
    return self.inp.mark != SIZE_MAX


cdef void give_back(Framing self) noexcept


cdef inline void consume(Framing self, size_t n) noexcept:
    """Remove the first n bytes from the input buffer, after the caller has copied them."""
    rio_assert(rio_flag_mine(&self.reading))
    buffer_consume(&self.inp, n)
    self.skipped = 0
    if rio_rare(self.inp.cap > self.inp.base):
        give_back(self)


cdef inline bytes take(Framing self, size_t n):
    """Return the first n bytes of the input buffer and remove them."""
    cdef bytes result = PyBytes_FromStringAndSize(buffer_start(&self.inp), n)
    consume(self, n)
    return result


cdef size_t to_line_limit(object max_line) except 0
cdef size_t to_frame_width(object width, object byteorder, bint *little) except 0

"""The rules by which received bytes are taken: in lines, through separators, by number, with a length in front.

Each rule is written once, for every way that bytes may come: a Rio reads them from a descriptor, a Feed is given them.
A rule looks at the bytes that are held and at whether the input has ended. It returns how many bytes the answer has, or
MORE; the caller then gets more bytes and asks again. It consumes nothing, so an exception at any point leaves all bytes
in the buffer, in order.

A ``Frame`` keeps the bytes that are read while it is open, so that several reads are one: all or nothing.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memcmp

from rioecho._core.buffer cimport (
    FOUND,
    NEED_MORE,
    TOO_LONG,
    buffer_consume,
    buffer_free,
    buffer_held,
    buffer_insert,
    buffer_mark,
    buffer_reserve,
    buffer_rewind,
    buffer_start,
    buffer_trim,
    buffer_unmark,
    find_frame,
    find_line,
    framing,
    rio_buffer,
)
from rioecho._core.convert cimport to_size
from rioecho._core.flag cimport flags_link, flags_unlink
from rioecho._core.posix cimport (
    RIO_FREE,
    RIO_LEFT,
    rio_bool_get,
    rio_bool_set,
    rio_flag_closed,
    rio_flag_fence,
    rio_flag_keep,
    rio_flag_let_go,
    rio_flag_resume,
    rio_flag_state,
    rio_size_get,
)

from rioecho.errors import ConcurrentCall, FrameTooLong, IncompleteRead, LineTooLong


cdef enum:
    # Minimum number of bytes that skip() and skipline() hold before they discard the beginning of what they skip.
    SKIP_AT_ONCE = 1 << 16
    # Number of bytes in which several separators are first searched, one after the other; then twice as many.
    WINDOW = 64


cdef size_t to_line_limit(object max_line) except 0:
    """Convert a ``max_line`` argument; None means no limit."""
    cdef size_t longest = SIZE_MAX if max_line is None else to_size(max_line, "max_line")
    if longest == 0:
        raise ValueError("max_line must be at least 1")
    return longest


cdef size_t to_frame_width(object width, object byteorder, bint *little) except 0:
    """Convert the arguments of ``readframe()`` that say what is in front of a payload."""
    cdef size_t n = to_size(width, "width")
    if not 1 <= n <= 8:
        raise ValueError(f"width must be from 1 to 8 bytes, not {width}")
    if not isinstance(byteorder, str):
        raise TypeError(f"byteorder must be a str, not {type(byteorder).__name__}")
    if byteorder not in ("big", "little"):
        raise ValueError(f"byteorder must be 'big' or 'little', not {byteorder!r}")
    little[0] = byteorder == "little"
    return n


cdef void give_back(Framing self) noexcept:
    """Free the memory that a long frame has left when it was consumed. Not inline, as consume() calls it rarely."""
    buffer_trim(&self.inp, buffer_held(&self.inp))


cdef framing find_first(
    const char *data, size_t held, tuple separators, size_t *scanned, size_t limit, size_t *n
) noexcept:
    """Search as ``find_frame()`` does for the separator that ends first.

    All are searched in a small window, then in one twice as large: the cost does not depend on where the others are.
    """
    cdef size_t span = min(held, limit)
    cdef size_t start = scanned[0], end, window = WINDOW, seen, found = 0
    cdef framing answer = TOO_LONG if held > limit else NEED_MORE
    while start < span and not found:
        end = start + min(window, span - start)
        for sep in separators:
            seen = start
            if (
                find_frame(
                    data, end, PyBytes_AS_STRING(<bytes>sep), PyBytes_GET_SIZE(<bytes>sep), &seen, end, n
                ) == FOUND
            ):
                found = n[0]
                end = found - 1   # only one that ends before is better
        start = end
        window *= 2
    if found:
        n[0] = found
        return FOUND
    scanned[0] = max(scanned[0], span)
    return answer


cdef class Framing:
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
        """Wake the threads that wait for their turn. Here is none: a second call is refused."""

    # ---- calls that wait for nothing

    @property
    def buffered(self):
        """The number of bytes in the input buffer: received and not yet read.

        ``select()`` and ``poll()`` do not report them. Raises ``ValueError`` if the owner is closed.
        """
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return buffer_held(&self.inp) if RIO_HAS_GIL else rio_size_get(&self.shown)

    @property
    def max_line(self):
        """The maximum length of a line in bytes, including the newline; ``None`` for no limit."""
        return None if self.line_limit == SIZE_MAX else self.line_limit

    def has_line(self):
        """Report whether the buffer has a complete line, so that ``readline()`` would return it at once."""
        cdef size_t n
        enter(self, &self.reading)
        try:
            return find_line(&self.inp, SIZE_MAX, &n) == FOUND
        finally:
            leave_reading(self)

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
                if n and not self.hold_again(<const char *>view.buf, n):
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

    # ---- the rules

    cdef ssize_t line_end(self, size_t limit, bint cut, bint ended) except -1:
        """Return the length of the first line, newline included; at the end, that of the remaining bytes.

        A line longer than ``limit`` is returned cut there if ``cut``; else ``LineTooLong`` is raised.
        """
        cdef size_t n = 0, held = buffer_held(&self.inp)
        cdef framing answer = find_line(&self.inp, limit, &n)
        if answer == FOUND:
            return n
        if cut and held >= limit:
            return limit
        if answer == TOO_LONG:
            raise LineTooLong(limit, held)
        return held if ended else MORE

    cdef ssize_t separator_end(self, size_t limit, bint ended) except -1:
        """Return the number of bytes through the first of the separators of ``set_separator()``.

        Raises ``LineTooLong`` if none ends within ``limit`` bytes, and ``IncompleteRead`` at the end of the input.
        """
        cdef size_t n = 0, held = buffer_held(&self.inp)
        cdef const char *data = buffer_start(&self.inp)
        cdef framing answer
        if type(self.sep) is tuple:
            answer = find_first(data, held, <tuple>self.sep, &self.inp.sep_scanned, limit, &n)
        else:
            answer = find_frame(
                data,
                held,
                PyBytes_AS_STRING(<bytes>self.sep),
                PyBytes_GET_SIZE(<bytes>self.sep),
                &self.inp.sep_scanned,
                limit,
                &n,
            )
        if answer == FOUND:
            return n
        if answer == TOO_LONG:
            raise LineTooLong(limit, held)
        if ended:
            self.incomplete(None)
        return MORE

    cdef int set_separator(self, object sep) except -1:
        """Check the separator of a call, bytes-like or a tuple of such, and store it."""
        cdef object separator
        if isinstance(sep, tuple):
            if not sep:
                raise ValueError("sep must not be an empty tuple")
            separator = tuple([one_separator(each) for each in <tuple>sep])
        else:
            separator = one_separator(sep)
        if self.sep != separator:
            self.sep = separator
            self.inp.sep_scanned = 0
        return 0

    cdef ssize_t bytes_end(self, size_t n, bint exactly, bint ended) except -1:
        """Return n when n bytes are held; at the end of the input fewer, or ``IncompleteRead`` if ``exactly``."""
        cdef size_t held = buffer_held(&self.inp)
        if held >= n:
            return n
        if not ended:
            return MORE
        if exactly:
            self.incomplete(n)
        return held

    cdef ssize_t payload_end(self, size_t width, bint little, size_t limit, bint ended, size_t *need) except -1:
        """Return the length of a frame of a length in ``width`` bytes and a payload, or 0 at the end of the input.

        MORE: ``need`` is the number of bytes of the frame that are known of. Raises ``FrameTooLong`` if the payload is
        longer than ``limit``, ``IncompleteRead`` if the input ends inside a frame.
        """
        cdef const unsigned char *data = <const unsigned char *>buffer_start(&self.inp)
        cdef size_t held = buffer_held(&self.inp), i
        cdef uint64_t size = 0
        if held >= width:
            for i in range(width):
                size = size << 8 | data[width - 1 - i if little else i]
            if size > limit or size > <uint64_t>(PY_SSIZE_T_MAX - 8):
                raise FrameTooLong(min(limit, <size_t>PY_SSIZE_T_MAX), size)
        need[0] = width + <size_t>size
        if held >= width and held >= need[0]:
            return need[0]
        if not ended:
            return MORE
        if held:
            self.incomplete(need[0])
        return 0

    cdef object take_payload(self, size_t width, ssize_t n):
        """Return the payload of a frame of n bytes and remove it with its length; None for the end of the input."""
        cdef bytes payload
        if n == 0:
            return None
        payload = PyBytes_FromStringAndSize(buffer_start(&self.inp) + width, n - width)
        consume(self, n)
        return payload

    cdef ssize_t skipline_end(self, bint ended) except -1:
        """Return the length of the first line, as ``line_end()`` does, or discard the beginning of one too long."""
        cdef size_t n = 0
        if find_line(&self.inp, SIZE_MAX, &n) == FOUND:
            return n
        n = buffer_held(&self.inp)
        if ended:
            return n
        if n > self.line_limit and n - self.line_limit > max(self.inp.base, <size_t>SKIP_AT_ONCE):
            self.discard(n)
        return MORE

    cdef ssize_t skip_end(self, size_t n, bint ended) except -1:
        """Return how many bytes are to be discarded now for n in all; at the end of the input fewer.

        So that a large n takes no memory, bytes are discarded before all have come. They count for the next call.
        """
        cdef size_t held = buffer_held(&self.inp)
        cdef size_t left = n - min(n, self.skipped)
        if held >= left or ended:
            return min(held, left)
        if held > max(self.inp.base, <size_t>SKIP_AT_ONCE):
            self.discard(held)
        return MORE

    cdef void discard(self, size_t n) noexcept:
        """Discard the first n bytes of what is skipped before the rest has come; not in a frame, which keeps them."""
        if not in_frame(self):
            buffer_consume(&self.inp, n)
            self.skipped += n

    cdef object drop(self, size_t n):
        """Remove n bytes, and return their number with those that were discarded before."""
        cdef object count = n + self.skipped   # created before anything is consumed: allocating an int can fail
        consume(self, n)
        return count

    cdef list take_lines(self, size_t n):
        """Return the first buffered line, of n bytes, and every complete line after it, and remove them."""
        # Local variables, because the compiler must assume that creating a bytes object changes the fields.
        cdef list lines = []
        cdef const char *line = buffer_start(&self.inp)
        cdef const char *end = line + buffer_held(&self.inp)
        cdef const char *first = line
        cdef size_t limit = self.line_limit
        cdef size_t scanned = 0
        while n:
            lines.append(PyBytes_FromStringAndSize(line, n))
            line += n
            scanned = 0
            if find_frame(line, end - line, b"\n", 1, &scanned, limit, &n) != FOUND:
                break
        consume(self, line - first)
        self.inp.scanned = scanned
        return lines

    cdef int incomplete(self, object expected) except -1:
        """Raise ``IncompleteRead`` with all buffered bytes. They are consumed after the error has been created."""
        cdef size_t held = buffer_held(&self.inp)
        error = IncompleteRead(PyBytes_FromStringAndSize(buffer_start(&self.inp), held), expected)
        consume(self, held)
        raise error


cdef bytes one_separator(object sep):
    if not isinstance(sep, (bytes, bytearray, memoryview)):
        raise TypeError(f"sep must be bytes, not {type(sep).__name__}")
    sep = bytes(sep)
    if not sep:
        raise ValueError("sep must not be empty")
    return sep


@cython.final
@cython.freelist(8)
cdef class Mark:
    pass


@cython.final
@cython.freelist(8)
@cython.no_gc_clear   # a collection would take the owner before __dealloc__ has told it
cdef class Frame:
    """The context manager of ``frame()``."""

    def __cinit__(self, Framing owner not None):
        self.owner = owner
        self.mark = Mark.__new__(Mark)

    def __dealloc__(self):
        """Undo the frame if it was not left.

        An exception came between __enter__() and the block, or another thread dropped a generator that had entered it.
        If a call is in progress, in another thread or in this one, which it has interrupted, that is done after it.
        """
        cdef Framing owner = self.owner
        cdef Mark mark = self.mark
        if mark is None or not mark.is_open or rio_flag_closed(&owner.reading):
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
        cdef Framing owner = self.owner
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
        cdef Framing owner = self.owner
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

"""Reading a number of bytes: the methods of class Rio that do not look for a separator.

Every method that reads, here and in lines.pyx, has the same structure. It looks for its frame in the buffer; while the
frame is incomplete, it reads more bytes into the buffer; it consumes the frame only after it has created the result.
So an exception at any point leaves in the buffer all bytes that were there, followed by those received since.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport SIZE_MAX
from libc.string cimport memcpy

from rioecho._core.buffer cimport (
    MAPPED,
    buffer_fits,
    buffer_free,
    buffer_held,
    buffer_move,
    buffer_put,
    buffer_reserve,
    buffer_room,
    buffer_start,
    rio_buffer,
)
from rioecho._core.convert cimport check_timeout, to_limit, to_size
from rioecho._rio.channel cimport AS_FILE
from rioecho._rio.framing cimport MORE, to_frame_width
from rioecho._rio.input cimport consume, enter, in_frame, leave_reading, take
from rioecho._rio.limits cimport rio_call
from rioecho._rio.receiver cimport AHEAD, Receiver, takes_no_more
from rioecho._rio.result cimport CUT_MIN, result_begin, result_begun, result_end, result_grow

cdef enum:
    # Maximum size of a large read's result before any byte of it has arrived; then it doubles. So a peer that announces
    # a huge length costs no memory: untouched pages cost address space only. From this size on glibc maps every block,
    # so that resizing it copies nothing.
    RESULT_START = 1 << 25
    # Maximum size of one read(2) of a large read.
    DIRECT_STEP = 1 << 23
    # Maximum size of the address space that is kept for the next readinto().
    ASIDE_MAX = 1 << 20
    # With bufsize=1: maximum number of bytes to read at once of those that the caller wants.
    STEP_EXACT = 1 << 16


cdef inline void copy_out(Reader self, char *to, size_t n) noexcept:
    """Copy the first n bytes of the input buffer."""
    if n:
        memcpy(to, buffer_start(&self.inp), n)


cdef class Reader(Receiver):
    # ---- a number of bytes

    def read(self, n=-1, *, timeout=...):
        """Read exactly ``n`` bytes, or up to EOF if ``n`` is negative or ``None`` (CS:APP 10.5.2, ``rio_readnb``).

        Returns the bytes, fewer than ``n`` only at EOF, and ``b""`` once the input is exhausted. Memory is allocated
        as bytes arrive, whatever ``n`` is; reads of ``bufsize`` bytes or more go directly into the result.

        Raises ``TimeoutError`` (``BlockingIOError`` if the timeout is 0) and any other ``OSError``; the bytes received
        stay in the buffer, and the next call returns them.
        """
        cdef Py_ssize_t size
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            size = to_limit(n, "n")
            if size < 0:
                self.check_as_file(n, True)
                return self.read_all(timeout)
            if <size_t>size <= buffer_held(&self.inp):
                return take(self, size)
            return self.read_n(size, timeout, False)
        finally:
            leave_reading(self)

    def readexactly(self, n, *, timeout=...):
        """Read exactly ``n`` bytes and return them.

        Raises ``IncompleteRead`` if the input ends before that; its ``partial`` has the bytes received, which are
        removed from the buffer. Raises all other errors as ``read()`` does.
        """
        cdef Py_ssize_t size = to_size(n, "n")
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            return self.read_n(size, timeout, True)
        finally:
            leave_reading(self)

    def read1(self, n=-1, *, timeout=...):
        """Return the buffered bytes, at most ``n`` of them unless ``n`` is negative; wait only if there are none.

        An empty buffer is first filled by one read. Returns ``b""`` at EOF. Raises the errors of ``read()``.
        """
        cdef Py_ssize_t size
        cdef size_t held
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            size = to_limit(n, "n")
            if size == 0:
                return b""
            self.check_as_file(n, False)
            held = self.hold_some(timeout, 1 if size < 0 else size)
            return take(self, held if size < 0 else min(<size_t>size, held))
        finally:
            leave_reading(self)

    def readinto(self, buffer, *, timeout=...):
        """Read into ``buffer``, a writable bytes-like object, until it is full or the input ends.

        Returns the number of bytes stored, fewer than ``len(buffer)`` only at EOF. Raises the errors of ``read()``; the
        bytes received are then still in the Rio, and the contents of ``buffer`` are undefined.
        """
        return self.read_buffer(buffer, True, timeout)

    def readinto1(self, buffer, *, timeout=...):
        """Read into ``buffer``, a writable bytes-like object, with at most one read.

        Copies the buffered bytes, as many as fit; waits only if there are none. Returns the number of bytes stored, 0
        at EOF. Raises the errors of ``readinto()``.
        """
        return self.read_buffer(buffer, False, timeout)

    cdef object read_buffer(self, object buffer, bint full, object timeout):
        cdef Py_buffer view
        cdef size_t n, size, held
        cdef object count   # created before anything is consumed, because allocating an int can fail
        check_timeout(timeout)
        try:
            PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        except (BufferError, TypeError):
            raise TypeError(
                f"a writable, contiguous bytes-like object is required, not {type(buffer).__name__}"
            ) from None
        try:
            enter(self, &self.reading)
            try:
                size = view.len
                held = buffer_held(&self.inp)
                # Not if much is held: each attempt that is interrupted would copy it again. Nor over TLS, where the
                # rest of a record would stay in OpenSSL.
                if full and held < size and held <= self.inp.base and self.transport is None and self.goes_direct(size):
                    return self.read_direct(<char *>view.buf, size, timeout)
                if size > held and (full or not held):
                    held = self.hold(size, timeout) if full else self.hold_some(timeout, size)
                n = min(held, size)
                count = n
                copy_out(self, <char *>view.buf, n)
                consume(self, n)
                return count
            finally:
                leave_reading(self)
        finally:
            PyBuffer_Release(&view)

    cdef int check_as_file(self, object n, bint none) except -1:
        """Refuse the sizes that io refuses, in a file of makefile(): ``None`` unless ``none``, else those below -1."""
        if self.own != AS_FILE:
            return 0
        if n is None:
            if not none:
                raise TypeError("n must be an integer, not None")
        elif none and n != -1:
            raise ValueError("read length must be non-negative or -1")
        return 0

    cdef size_t hold(self, size_t n, object timeout) except? 0:
        """Read until n bytes are buffered or the input ends. Returns the number of buffered bytes."""
        cdef rio_call call
        self.start(&call, timeout)
        while buffer_held(&self.inp) < n:
            if self.fill_once(&call, self.step_towards(n)) == 0:
                break
        return buffer_held(&self.inp)

    cdef size_t hold_some(self, object timeout, size_t wanted) except? 0:
        """Return the number of buffered bytes; if there are none, make one read first, for ``wanted`` bytes."""
        cdef rio_call call
        if buffer_held(&self.inp) == 0:
            self.start(&call, timeout)
            self.fill_once(&call, min(wanted, self.next_step()))
        return buffer_held(&self.inp)

    cdef size_t next_step(self) noexcept:
        """Return how many bytes the next read into the buffer, for a caller who wants many, should make room for."""
        return buffer_held(&self.inp) + (<size_t>STEP_EXACT if takes_no_more(self) else 1)

    cdef bytes read_all(self, object timeout):
        cdef rio_call call
        if in_frame(self):
            return take(self, self.hold(PY_SSIZE_T_MAX, timeout))
        self.start(&call, timeout)
        while buffer_held(&self.inp) < self.inp.base:
            if self.fill_once(&call, self.inp.base) == 0:
                return take(self, buffer_held(&self.inp))
        return self.take_result(self.fill_result(&call, PY_SSIZE_T_MAX, max(self.inp.base * 2, <size_t>CUT_MIN * 2)))

    cdef bytes read_n(self, size_t n, object timeout, bint exactly):
        """Read n bytes; at EOF, return fewer, or raise ``IncompleteRead`` if ``exactly``."""
        cdef rio_call call
        cdef size_t held = buffer_held(&self.inp)
        if n <= held:
            return take(self, n)
        if self.goes_direct(n):
            self.start(&call, timeout)
            held = self.fill_result(&call, n, RESULT_START)
        else:
            held = self.hold(n, timeout)
        return self.take_result(self.bytes_end(n, exactly, True))

    cdef bint goes_direct(self, size_t n) noexcept:
        """Report whether a read of n bytes should go directly to its destination: the buffer would have to grow.

        Not in a frame, whose bytes stay in the buffer.
        """
        return not in_frame(self) and (n >= self.inp.base or not (self.inp.cap == 0 or buffer_fits(&self.inp, n)))

    # ---- large reads

    cdef size_t fill_result(self, rio_call *call, size_t n, size_t size) except? 0:
        """Read until n bytes are held or the input ends, into a bytes object of initially ``size`` bytes at most.

        Returns the number of bytes held, of which ``take_result()`` returns the first n. Up to ``AHEAD`` more may be
        held, but fewer than ``bufsize``.
        """
        cdef rio_buffer *b = &self.inp
        cdef size_t least = 1   # room for one read
        cdef size_t most = min(b.base - 1, <size_t>AHEAD)
        if self.transport is not None and not takes_no_more(self):
            least = self.transport.least_room()
            most = max(most, least)
        most = n + min(most, PY_SSIZE_T_MAX - n)   # the number of bytes to hold
        if not result_begun(b):
            try:
                result_begin(b, &self.aside, min(most, max(buffer_held(b) * 2, size)))
            except MemoryError:   # for bytes that have not arrived yet
                result_begin(b, &self.aside, min(most, max(buffer_held(b) * 2, <size_t>ASIDE_MAX)))
        while buffer_held(b) < n:
            if buffer_room(b) < least:
                result_grow(b, &self.aside, max(min(most, b.cap * 2), b.cap + least))
            if self.fill_room(call, min(min(buffer_room(b), most - buffer_held(b)), <size_t>DIRECT_STEP)) == 0:
                break
        return buffer_held(b)

    cdef bytes take_result(self, size_t n):
        """Return the first n held bytes and remove them, without a copy if they fill the object of fill_result()."""
        cdef bytes result = result_end(&self.inp, &self.aside, n)
        if result is None:
            return take(self, n)
        self.skipped = 0
        self.brief = self.own == AS_FILE
        return result

    cdef object read_direct(self, char *data, size_t n, object timeout):
        """Read into ``data``, memory of the caller, until it has n bytes or the input ends. Returns their number.

        The bytes must be held on an error, so before each read there is memory for them. It is mapped and stays
        untouched unless there is an error, so it costs only address space, and is kept for the next call.
        """
        cdef rio_call call
        cdef size_t held = buffer_held(&self.inp)
        cdef size_t got = held
        cdef size_t step
        cdef ssize_t come = 1
        cdef object count
        self.start(&call, timeout)
        copy_out(self, data, held)
        try:
            while got < n and come:
                step = min(n - got, <size_t>DIRECT_STEP)
                if buffer_reserve(&self.aside, max(got + step, <size_t>MAPPED)) < 0:
                    step = min(step, self.inp.base)   # memory is short: less at a time
                    if buffer_reserve(&self.aside, got + step) < 0:
                        raise MemoryError
                come = self.recv_some(&call, data + got, step)
                got += come
                self.booked()
            count = got
        except BaseException:
            if got > held:
                buffer_put(&self.aside, data, got)
                buffer_move(&self.inp, &self.aside)
            raise
        finally:
            if self.aside.cap > ASIDE_MAX:
                buffer_free(&self.aside)
        consume(self, held)
        self.brief = self.own == AS_FILE
        return count

    # ---- frames of a length and a payload, and bytes that nobody wants

    def readframe(self, width=4, byteorder="big", *, limit=..., timeout=...):
        """Read a frame: a length, an unsigned integer of ``width`` bytes (1 to 8), and a payload of that many bytes.

        Returns the payload, whole; ``None`` at the end of the input between two frames. ``byteorder`` is that of the
        length, ``"big"`` (network byte order, RFC 1700) or ``"little"``. ``limit`` is the maximum length of a payload,
        by default ``max_line``; ``None`` means no limit.

        Raises ``FrameTooLong`` if the payload is longer, and ``TimeoutError``, ``BlockingIOError`` and any other
        ``OSError`` as ``read()`` does: the length and the bytes received stay in the buffer. Raises ``IncompleteRead``
        if the input ends inside a frame; its ``partial`` has the bytes of the frame, its length included, which are
        removed from the buffer.
        """
        cdef rio_call call
        cdef bint little = False, ended = False
        cdef size_t size = to_frame_width(width, byteorder, &little)
        cdef size_t most = self.line_limit if limit is ... else SIZE_MAX if limit is None else to_size(limit, "limit")
        cdef size_t need = 0
        cdef ssize_t n
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            n = self.payload_end(size, little, most, False, &need)
            if n == MORE:
                self.start(&call, timeout)
            while n == MORE:
                ended = self.fill_once(&call, self.step_towards(need)) == 0
                n = self.payload_end(size, little, most, ended, &need)
            return self.take_payload(size, n)
        finally:
            leave_reading(self)

    def skip(self, n, *, timeout=...):
        """Discard the next ``n`` bytes, without copying them. Returns their number, fewer only at EOF.

        Raises the errors of ``read()``; the bytes received then stay in the buffer. There is one exception, which
        bounds the memory: of more than ``bufsize`` bytes and 64 KiB, the beginning is discarded at once. The next
        ``skip()`` includes those bytes in its ``n`` and in the number it returns. In a ``frame()`` all bytes are kept.
        """
        cdef rio_call call
        cdef size_t size = to_size(n, "n")
        cdef ssize_t found
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            found = self.skip_end(size, False)
            if found == MORE:
                self.start(&call, timeout)
            while found == MORE:
                found = self.skip_end(size, self.fill_once(&call, self.step_towards(size - self.skipped)) == 0)
            return self.drop(found)
        finally:
            leave_reading(self)

    cdef size_t step_towards(self, size_t n) noexcept:
        """Return how many bytes the next read should make room for, of n: the buffer grows as bytes arrive."""
        return min(n, max(self.next_step(), self.inp.base))

    # ---- the input buffer

    def fill(self, n=1, *, timeout=...):
        """Wait until at least ``n`` bytes are buffered, and return the number of buffered bytes.

        Returns fewer than ``n`` only at EOF. The buffer grows as needed; ``peek()`` then returns its contents. Raises
        the errors of ``read()``.
        """
        cdef size_t size = to_size(n, "n")
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            return self.hold(size, timeout)
        finally:
            leave_reading(self)

    def peek(self, n=0, *, timeout=...):
        """Return all buffered bytes without consuming them; if there are none, make one read first.

        Returns ``b""`` at EOF. ``n`` is only a hint, as in ``io``, and is ignored; to wait for n bytes, call
        ``fill(n)`` first. Raises the errors of ``read()``.
        """
        cdef size_t held
        to_limit(n, "n")
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            self.check_as_file(n, False)
            self.brief = self.own == AS_FILE   # pickle.load() calls peek() for each object: hold little
            held = self.hold_some(timeout, 1)
            return PyBytes_FromStringAndSize(buffer_start(&self.inp), held)
        finally:
            leave_reading(self)

"""Reading a number of bytes: the methods of class Rio that do not look for a separator.

Every method that reads, here and in lines.pyx, has the same structure. It looks for its frame in the buffer; while the
frame is incomplete, it reads more bytes into the buffer; it consumes the frame only after it has created the result.
So an exception at any point leaves in the buffer all bytes that were there, followed by those received since.
"""

from io import UnsupportedOperation

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcpy

from rioecho._core.buffer cimport (
    MAPPED,
    buffer_added,
    buffer_fits,
    buffer_free,
    buffer_held,
    buffer_move,
    buffer_put,
    buffer_reserve,
    buffer_room,
    buffer_start,
    buffer_trim,
    rio_buffer,
)
from rioecho._core.convert cimport check_source, check_timeout, os_error, to_limit, to_size
from rioecho._core.fdio cimport (
    FD_FILE,
    FD_SOCKET,
    fd_never_waits,
    fd_peek,
    fd_read,
    fd_read_waiting,
    would_block,
)
from rioecho._core.posix cimport (
    POLLIN,
    RIO_HAS_GIL,
    rio_assert,
    rio_flag_closed,
    rio_flag_mine,
    rio_monotonic_ns,
    rio_size_get,
)
from rioecho._rio.channel cimport (
    AS_FILE,
    SLICE,
    begin_wait,
    enter,
    leave_reading,
    let_others_in,
    rio_call,
    show_held,
)
from rioecho._rio.output cimport Output
from rioecho._rio.result cimport CUT_MIN, result_begin, result_begun, result_end, result_grow
from rioecho._rio.transport cimport OWN_TIMEOUT

from rioecho.errors import IncompleteRead


cdef enum:
    # Maximum size of a large read's result before any byte of it has arrived; then it doubles. So a peer that announces
    # a huge length costs no memory: untouched pages cost address space only. From this size on glibc maps every block,
    # so that resizing it copies nothing.
    RESULT_START = 1 << 25
    # Maximum size of one read(2) of a large read.
    DIRECT_STEP = 1 << 23
    # Maximum number of bytes behind the result that a large read may read, so that the line which follows is there.
    AHEAD = 1 << 13
    # Maximum size of the address space that is kept for the next readinto().
    ASIDE_MAX = 1 << 20
    # With bufsize=1: number of bytes to look at for the end of a frame (as many as are held, if those are more), and
    # maximum number to read at once of those that the caller wants.
    LOOK_AHEAD = 1 << 10
    STEP_EXACT = 1 << 16


cdef inline bint takes_no_more(Reader self) noexcept:
    """Report whether no byte behind what the caller wants may be read: ``bufsize=1``, as with ``io``."""
    return self.inp.base == 1


cdef inline void copy_out(Reader self, char *to, size_t n) noexcept:
    """Copy the first n bytes of the input buffer."""
    if n:
        memcpy(to, buffer_start(&self.inp), n)


cdef class Reader(Output):
    # ---- one read

    cdef ssize_t recv_some(self, rio_call *call, char *data, size_t n) except -1:
        """Read 1 to n bytes into ``data``, waiting within the call's time limit. Returns their number, 0 at EOF."""
        cdef ssize_t got = 0
        cdef int err = 0
        cdef short want = POLLIN
        cdef bint ready = self.f.kind == FD_FILE
        if not self.can_read:
            raise UnsupportedOperation("this Rio is not readable: its descriptor is open for writing only")
        begin_wait(call)
        while True:
            self.turn(call)
            if self.transport is not None:
                if self.transport.waits:
                    return self.recv_waiting(call, data, n)
                got = self.recv_through(call, data, n, &want)
                err = EAGAIN
            elif fd_never_waits(&self.f):
                got = fd_read(&self.f, data, n, &err)
            elif ready:
                with nogil:
                    got = fd_read_waiting(&self.f, data, n, &err)
            else:
                got = -1   # a blocking descriptor that is not a socket is read only after poll(2) has reported data
                err = EAGAIN
            if got < 0 and would_block(err) and call.timeout < 0 and self.transport is None:
                if not self.tied_flush():
                    # Without a deadline and without buffered output the read itself can block, which saves a poll(2).
                    # If O_NONBLOCK is set it fails again, and wait_for() below waits.
                    self.before_wait()
                    with nogil:
                        got = fd_read_waiting(&self.f, data, n, &err)
            if got == 0:
                self.raise_reset(call)
            if got >= 0:
                let_others_in(self)
                return got
            if would_block(err):
                if want:   # else the source has waited itself
                    self.wait_for(call, want, tied=True)
                ready = True
            elif err != EINTR:
                raise os_error(err)

    cdef ssize_t recv_waiting(self, rio_call *call, char *data, size_t n) except -1:
        """Read as ``recv_some()`` does from a source that waits itself.

        There is no wait for both directions. So while the source does not take all unsent output, it waits to read for
        short times only, and the output is tried in between.
        """
        cdef ssize_t got
        cdef int64_t patience
        cdef short want = 0, blocked
        while True:
            patience = self.patience(call)
            blocked = self.tied_flush()
            self.before_wait()
            if blocked and call.timeout != 0:
                patience = SLICE
                if call.timeout > 0:
                    patience = min(patience, max(call.deadline - rio_monotonic_ns(), <int64_t>1))
            got = self.transport.recv(data, n, patience, &want)
            let_others_in(self)
            if got == 0:
                self.raise_reset(call)
            if got >= 0:
                return got
            self.poll_source(call, want, blocked != 0)
            self.turn(call)

    cdef ssize_t recv_through(self, rio_call *call, char *data, size_t n, short *want) except -2:
        """Make one attempt through the transport. It waits itself if no buffered output is kept back meanwhile."""
        cdef int64_t patience = 0
        cdef ssize_t got
        if call.timeout != 0:
            if call.per_wait:
                patience = OWN_TIMEOUT
            elif call.timeout < 0:
                patience = -1
            elif call.turns == 1:   # the time has just begun
                patience = call.timeout
        if patience != 0 and self.may_owe():
            # There may be data already: then the output waits for what the caller writes next.
            got = self.transport.recv(data, n, 0, want)
            if got >= 0 or self.tied_flush():
                return got
            self.before_wait()
        PyErr_CheckSignals()
        return self.transport.recv(data, n, patience, want)

    cdef int booked(self) except -1:
        """Run pending signal handlers. The received bytes are stored, so a handler that raises loses nothing."""
        if self.transport is not None:
            self.transport.raise_late()
        PyErr_CheckSignals()
        return 0

    cdef ssize_t fill_once(self, rio_call *call, size_t need) except -1:
        """Make one read into the buffer, grown to hold at least ``need`` bytes. Returns the bytes added, 0 at EOF.

        With a buffer of one byte it reads no byte beyond ``need``.
        """
        cdef size_t n
        rio_assert(rio_flag_mine(&self.reading))
        if self.transport is not None and not takes_no_more(self):
            need = max(need, buffer_held(&self.inp) + self.transport.least_room())
        buffer_trim(&self.inp, need)
        if buffer_reserve(&self.inp, need) < 0:
            raise MemoryError
        n = buffer_room(&self.inp)
        if takes_no_more(self):
            n = min(n, need - buffer_held(&self.inp))
        elif self.brief and self.transport is None:
            self.brief = False
            n = min(n, max(need, buffer_held(&self.inp) + AHEAD) - buffer_held(&self.inp))
        return self.fill_room(call, n)

    cdef ssize_t fill_room(self, rio_call *call, size_t n) except -1:
        """Make one read of up to n bytes into the buffer, which has room for them."""
        cdef ssize_t got = self.recv_some(call, self.inp.data + self.inp.w, n)
        buffer_added(&self.inp, got)
        show_held(self)
        self.booked()
        return got

    cdef ssize_t fill_towards(self, rio_call *call, char end, size_t limit) except -1:
        """Make one read for a frame that ends in the byte ``end``. Returns the number of bytes added, 0 at EOF.

        With a buffer of one byte it reads no byte beyond the first ``end``, nor beyond ``limit`` buffered bytes: one
        byte, and from a socket those after it up to there, which it finds by peeking.
        """
        cdef size_t held = buffer_held(&self.inp)
        cdef size_t most
        cdef ssize_t got = self.fill_once(call, held + 1)
        cdef ssize_t more
        cdef char *data
        cdef const char *last
        cdef int err = 0
        if got == 0 or not takes_no_more(self) or self.f.kind != FD_SOCKET or self.transport is not None:
            return got
        held += got
        if self.inp.data[self.inp.w - 1] == end or held >= limit:
            return got
        check_source(self.source, self.f.fd)   # a signal handler may have closed it
        most = min(limit - held, max(held, <size_t>LOOK_AHEAD))
        if buffer_reserve(&self.inp, held + most) < 0:
            raise MemoryError
        data = self.inp.data + self.inp.w
        more = fd_peek(&self.f, data, most, &err)
        if more > 0:
            last = <const char *>memchr(data, end, more)
            if last != NULL:
                more = last - data + 1
            more = fd_read(&self.f, data, more, &err)
        if more < 0:
            if would_block(err) or err == EINTR:
                return got
            raise os_error(err)   # the kernel reports it only once
        buffer_added(&self.inp, more)
        show_held(self)
        return got + more

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
            # The buffer grows as bytes arrive, whatever n is.
            if self.fill_once(&call, min(n, max(self.next_step(), self.inp.base))) == 0:
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
        if n > held and exactly:
            self.incomplete(n)
        return self.take_result(min(n, held))

    cdef bint goes_direct(self, size_t n) noexcept:
        """Report whether a read of n bytes should go directly to its destination: the buffer would have to grow."""
        return n >= self.inp.base or not (self.inp.cap == 0 or buffer_fits(&self.inp, n))

    cdef int incomplete(self, object expected) except -1:
        """Raise ``IncompleteRead`` with all buffered bytes. They are consumed after the error has been created."""
        cdef size_t held = buffer_held(&self.inp)
        error = IncompleteRead(PyBytes_FromStringAndSize(buffer_start(&self.inp), held), expected)
        consume(self, held)
        raise error

    # ---- large reads

    cdef size_t fill_result(self, rio_call *call, size_t n, size_t size) except? 0:
        """Read until n bytes are held or the input ends, into a bytes object of initially ``size`` bytes at most.

        Returns the number of bytes held, of which ``take_result()`` returns the first n. Up to ``AHEAD`` more may be
        held, but fewer than ``bufsize``.
        """
        cdef rio_buffer *b = &self.inp
        cdef size_t least = 1   # room for one read
        cdef size_t most = min(b.base - 1, <size_t>AHEAD)
        if self.transport is not None:
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

    @property
    def buffered(self):
        """The number of bytes in the input buffer: received and not yet read.

        ``select()`` and ``poll()`` do not report them. Raises ``ValueError`` if the Rio is closed.
        """
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return buffer_held(&self.inp) if RIO_HAS_GIL else rio_size_get(&self.shown)

    def read_buffered(self):
        """Return all buffered bytes and remove them from the buffer. Does not use the descriptor."""
        enter(self, &self.reading)
        try:
            return take(self, buffer_held(&self.inp))
        finally:
            leave_reading(self)

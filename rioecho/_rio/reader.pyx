"""Reading a number of bytes: the methods of class Rio that do not look for a separator.

Every method that reads, here and in lines.pyx, has the same structure. It looks for its frame in the buffer; while the
frame is incomplete, it reads more bytes into the buffer; it consumes the frame only after it has created the result.
So an exception at any point leaves in the buffer all bytes that were there, followed by those received since.
"""

from io import UnsupportedOperation

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcpy

from rioecho._core.buffer cimport (
    buffer_added,
    buffer_held,
    buffer_put,
    buffer_reserve,
    buffer_room,
    buffer_start,
    buffer_trim,
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
    rio_bytes_cut,
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
from rioecho._rio.transport cimport OWN_TIMEOUT

from rioecho.errors import IncompleteRead


cdef enum:
    # Initial size of a large read's result, which doubles as bytes arrive, so that a peer that announces a huge length
    # costs no memory (untouched pages cost address space only).
    DIRECT_START = 1 << 24
    # Maximum size of one read(2) of a large read.
    DIRECT_STEP = 1 << 20
    # Minimum length of a short result that is made by truncating the large one in place. A shorter result is copied:
    # it would keep whole pages of the large one.
    CUT_MIN = 1 << 15
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
        cdef ssize_t got
        cdef size_t room
        rio_assert(rio_flag_mine(&self.reading))
        buffer_trim(&self.inp)
        if self.transport is not None and not takes_no_more(self):
            need = max(need, buffer_held(&self.inp) + self.transport.least_room())
        if buffer_reserve(&self.inp, need) < 0:
            raise MemoryError
        room = buffer_room(&self.inp)
        if takes_no_more(self):
            room = min(room, need - buffer_held(&self.inp))
        got = self.recv_some(call, self.inp.data + self.inp.w, room)
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
        cdef rio_call call
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
                if full and size > held and self.goes_direct(size):
                    self.start(&call, timeout)
                    copy_out(self, <char *>view.buf, held)
                    n = self.read_direct(&call, <char *>view.buf, held, size)
                    try:
                        count = n
                    except MemoryError:
                        buffer_put(&self.inp, <char *>view.buf + held, n - held)
                        raise
                    consume(self, held)
                    return count
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
        while self.fill_once(&call, self.next_step()):
            pass
        return take(self, buffer_held(&self.inp))

    cdef bytes read_n(self, size_t n, object timeout, bint exactly):
        """Read n bytes; at EOF, return fewer, or raise ``IncompleteRead`` if ``exactly``."""
        cdef bytes result
        if n > buffer_held(&self.inp):
            if self.goes_direct(n):
                result = self.read_large(n, timeout, exactly)
                if result is not None:
                    return result
            else:
                self.hold(n, timeout)
            if n > buffer_held(&self.inp):
                if exactly:
                    self.incomplete(n)
                n = buffer_held(&self.inp)
        return take(self, n)

    cdef bint goes_direct(self, size_t n) noexcept:
        """Report whether a read of n bytes should bypass the buffer.

        It should not if much is buffered already, since each attempt that times out would copy that again, nor over
        TLS, where the rest of a record would stay in OpenSSL.
        """
        return n >= self.inp.base and buffer_held(&self.inp) <= self.inp.base and self.transport is None

    cdef int incomplete(self, object expected) except -1:
        """Raise ``IncompleteRead`` with all buffered bytes. They are consumed after the error has been created."""
        cdef size_t held = buffer_held(&self.inp)
        error = IncompleteRead(PyBytes_FromStringAndSize(buffer_start(&self.inp), held), expected)
        consume(self, held)
        raise error

    cdef bytes read_large(self, size_t n, object timeout, bint exactly):
        """Read n bytes, ``bufsize`` or more, directly into the result.

        At EOF, truncate the result in place and return it, unless ``exactly``. If that is not possible, return None;
        all bytes are then in the buffer.
        """
        cdef rio_call call
        cdef size_t held, come
        cdef size_t got = buffer_held(&self.inp)
        cdef size_t size = min(n, max(got * 2, <size_t>DIRECT_START))
        cdef bytes result, larger
        cdef PyObject *whole
        cdef PyObject *cut
        self.start(&call, timeout)
        result = PyBytes_FromStringAndSize(NULL, size)
        copy_out(self, PyBytes_AS_STRING(result), got)
        while True:
            held = buffer_held(&self.inp)
            come = self.read_direct(&call, PyBytes_AS_STRING(result), got, size)
            if come == n:
                consume(self, held)
                return result
            if CUT_MIN <= come < size and not exactly:
                Py_INCREF(result)
                whole = <PyObject *>result
                result = None   # now `whole` is the only reference, so the object may be moved
                cut = rio_bytes_cut(whole, come)
                result = <bytes>(cut if cut != NULL else whole)
                Py_DECREF(result)
                if cut != NULL:
                    consume(self, held)
                    return result
            # At EOF, or before allocating a larger result, store the received bytes in the buffer, so that a failure
            # loses none.
            buffer_put(&self.inp, PyBytes_AS_STRING(result) + held, come - held)
            if come < size:
                return None
            got = come
            size = min(n, size * 2)
            larger = PyBytes_FromStringAndSize(NULL, size)
            memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(result), got)
            result = larger

    cdef ssize_t read_direct(self, rio_call *call, char *data, size_t got, size_t n) except -1:
        """Read into ``data``, which begins with a copy of the buffered bytes, from index ``got`` until it has n bytes.

        Returns the number of bytes in ``data``, fewer than n at EOF. The buffered bytes are not consumed, and the
        buffer has room for all bytes received, so that on an error they can be stored there without an allocation.
        """
        cdef size_t held = buffer_held(&self.inp)
        cdef size_t step
        cdef ssize_t come
        try:
            while got < n:
                step = min(n - got, <size_t>DIRECT_STEP)
                if buffer_reserve(&self.inp, got + step) < 0:
                    raise MemoryError
                come = self.recv_some(call, data + got, step)
                if come == 0:
                    break
                got += come
                self.booked()
        except BaseException:
            if got > held:
                buffer_put(&self.inp, data + held, got - held)
            raise
        return got

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

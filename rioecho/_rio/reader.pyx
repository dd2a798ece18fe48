"""Reading a number of bytes: the methods of class Rio for which no byte means anything.

Every method that reads, here and in lines.pyx, has the same shape. It looks for its frame in what is held; while the
frame is not whole it lets one more read come in; only when the result exists does it consume. So whatever interrupts
it leaves the buffer as it was, with what came in meanwhile added.
"""

from io import UnsupportedOperation

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EINTR
from libc.string cimport memcpy

from rioecho._core.buffer cimport (
    buffer_added,
    buffer_held,
    buffer_put,
    buffer_reserve,
    buffer_room,
    buffer_start,
    buffer_trim,
)
from rioecho._core.convert cimport check_timeout, os_error, to_limit, to_size
from rioecho._core.fdio cimport FD_FILE, fd_never_waits, fd_read, fd_read_waiting, would_block
from rioecho._core.posix cimport (
    POLLIN,
    RIO_HAS_GIL,
    rio_assert,
    rio_bytes_cut,
    rio_flag_closed,
    rio_flag_mine,
    rio_size_get,
)
from rioecho._rio.channel cimport enter, leave_reading, rio_call, show_held
from rioecho._rio.output cimport Output
from rioecho._rio.tls cimport RECORD

from rioecho.errors import IncompleteRead


cdef enum:
    # A large read gets its memory in pieces no larger than this until that much has come in, so that a length that
    # a peer made up costs nothing (untouched memory costs address space only).
    DIRECT_START = 1 << 24
    # One read of a large read, at most.
    DIRECT_STEP = 1 << 20
    # The shortest result of a large read that stays in the memory of the whole: less would be held by pages of its own.
    CUT_MIN = 1 << 15


cdef inline void copy_out(Reader self, char *to, size_t n) noexcept:
    """Copy the first n held bytes."""
    if n:
        memcpy(to, buffer_start(&self.inp), n)


cdef class Reader(Output):
    # ---- one read

    cdef ssize_t recv_some(self, rio_call *call, char *data, size_t n) except -1:
        """One read that gets something: 1 to n bytes, or 0 at the end of the input. Waits as long as the call may."""
        cdef ssize_t got = 0
        cdef int err = 0
        cdef short want = POLLIN
        cdef bint ready = self.f.kind == FD_FILE
        if not self.can_read:
            raise UnsupportedOperation("this Rio is not readable: its descriptor is open for writing only")
        while True:
            self.turn(call)
            if self.tls is not None:
                got = self.tls.recv(data, n, &want)
                err = EAGAIN
            elif fd_never_waits(&self.f):
                got = fd_read(&self.f, data, n, &err)
            elif ready:
                with nogil:
                    got = fd_read_waiting(&self.f, data, n, &err)
            else:
                got = -1   # a blocking descriptor that is no socket is read only once poll(2) has seen data
                err = EAGAIN
            if got < 0 and would_block(err) and call.timeout < 0 and self.tls is None:
                if not self.tied_flush():
                    # No deadline and no output to watch: the read can do the waiting itself, which saves a poll(2).
                    # If O_NONBLOCK is set, it does not, and we go on below.
                    self.before_wait()
                    with nogil:
                        got = fd_read_waiting(&self.f, data, n, &err)
            if got == 0:
                self.raise_reset(call)
            if got >= 0:
                return got
            if would_block(err):
                self.wait_for(call, want, tied=True)
                ready = True
            elif err != EINTR:
                raise os_error(err)

    cdef int booked(self) except -1:
        """The bytes that came in are stored. Run pending signal handlers now, so that one that raises loses nothing."""
        if self.tls is not None:
            self.tls.raise_late()
        PyErr_CheckSignals()
        return 0

    cdef ssize_t fill_once(self, rio_call *call, size_t need) except -1:
        """One read into the buffer, grown if it could not hold `need` bytes: how many came, 0 at the end."""
        cdef ssize_t got
        rio_assert(rio_flag_mine(&self.reading))
        buffer_trim(&self.inp)
        if self.tls is not None:
            need = max(need, buffer_held(&self.inp) + RECORD)
        if buffer_reserve(&self.inp, need) < 0:
            raise MemoryError
        got = self.recv_some(call, self.inp.data + self.inp.w, buffer_room(&self.inp))
        buffer_added(&self.inp, got)
        show_held(self)
        self.booked()
        return got

    # ---- a number of bytes

    def read(self, n=-1, *, timeout=...):
        """Read exactly n bytes (RIO's rio_readnb, CS:APP 10.5.2), or all to the end of the input if n is negative.

        Returns fewer only at the end of the input. `bufsize` bytes or more are read straight into the result; memory
        is taken as they come. Raises TimeoutError, BlockingIOError and OSError; what came stays held.
        """
        cdef Py_ssize_t size
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            size = to_limit(n, "n")
            if size < 0:
                return self.read_all(timeout)
            if <size_t>size <= buffer_held(&self.inp):
                return take(self, size)
            return self.read_n(size, timeout, False)
        finally:
            leave_reading(self)

    def readexactly(self, n, *, timeout=...):
        """Read exactly n bytes.

        Raises IncompleteRead if the input ends before, with what came in `.partial`; the rest as read() does.
        """
        cdef Py_ssize_t size = to_size(n, "n")
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            return self.read_n(size, timeout, True)
        finally:
            leave_reading(self)

    def read1(self, n=-1, *, timeout=...):
        """Read what is held, at most n bytes of it, after one read if nothing is. b"" at the end of the input."""
        cdef Py_ssize_t size
        cdef size_t held
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            size = to_limit(n, "n")
            if size == 0:
                return b""
            held = self.hold_some(timeout)
            return take(self, held if size < 0 else min(<size_t>size, held))
        finally:
            leave_reading(self)

    def readinto(self, buffer, *, timeout=...):
        """Read into a writable bytes-like object until it is full or the input ends: how many bytes came.

        If this raises, the bytes that came are held here again and will be read again; those in `buffer` do not count.
        """
        return self.read_buffer(buffer, True, timeout)

    def readinto1(self, buffer, *, timeout=...):
        """Read into a writable bytes-like object with at most one read: how many bytes came, 0 at the end."""
        return self.read_buffer(buffer, False, timeout)

    cdef object read_buffer(self, object buffer, bint full, object timeout):
        cdef Py_buffer view
        cdef rio_call call
        cdef size_t n, size, held
        cdef object count   # made before anything is consumed: an int needs memory, too
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
                    held = self.hold(size, timeout) if full else self.hold_some(timeout)
                n = min(held, size)
                count = n
                copy_out(self, <char *>view.buf, n)
                consume(self, n)
                return count
            finally:
                leave_reading(self)
        finally:
            PyBuffer_Release(&view)

    cdef size_t hold(self, size_t n, object timeout) except? 0:
        """Read until n bytes are held or the input ends: how many are."""
        cdef rio_call call
        self.start(&call, timeout)
        while buffer_held(&self.inp) < n:
            # The memory grows as the bytes come: n is only what somebody asked for.
            if self.fill_once(&call, min(n, max(buffer_held(&self.inp) + 1, self.inp.base))) == 0:
                break
        return buffer_held(&self.inp)

    cdef size_t hold_some(self, object timeout) except? 0:
        """What is held, after one read if nothing is."""
        cdef rio_call call
        if buffer_held(&self.inp) == 0:
            self.start(&call, timeout)
            self.fill_once(&call, 1)
        return buffer_held(&self.inp)

    cdef bytes read_all(self, object timeout):
        cdef rio_call call
        self.start(&call, timeout)
        while self.fill_once(&call, buffer_held(&self.inp) + 1):
            pass
        return take(self, buffer_held(&self.inp))

    cdef bytes read_n(self, size_t n, object timeout, bint exactly):
        """n bytes; fewer, or an error, at the end of the input."""
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
        """Is a read of n bytes to go straight into the caller's memory?

        Not if much is held already, which then would be copied once more by every attempt that times out; and not
        over TLS, where the rest of a record would stay behind in OpenSSL.
        """
        return n >= self.inp.base and buffer_held(&self.inp) <= self.inp.base and self.tls is None

    cdef int incomplete(self, object expected) except -1:
        """Raise IncompleteRead with all that is held, which is consumed once the error exists."""
        cdef size_t held = buffer_held(&self.inp)
        error = IncompleteRead(PyBytes_FromStringAndSize(buffer_start(&self.inp), held), expected)
        consume(self, held)
        raise error

    cdef bytes read_large(self, size_t n, object timeout, bint exactly):
        """A buffer full or more, read straight into the result. None at the end of the input, and all is held; what
        came before it, if that will do and a shorter result can be made of the result without a copy.
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
                result = None   # now `whole` is the only reference, and may move
                cut = rio_bytes_cut(whole, come)
                result = <bytes>(cut if cut != NULL else whole)
                Py_DECREF(result)
                if cut != NULL:
                    consume(self, held)
                    return result
            # The end of the input, or the need for a larger result: what came goes back into the buffer first,
            # where nothing that fails can reach it.
            buffer_put(&self.inp, PyBytes_AS_STRING(result) + held, come - held)
            if come < size:
                return None
            got = come
            size = min(n, size * 2)
            larger = PyBytes_FromStringAndSize(NULL, size)
            memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(result), got)
            result = larger

    cdef ssize_t read_direct(self, rio_call *call, char *data, size_t got, size_t n) except -1:
        """Read on into the caller's memory, in which the held bytes stand first, from `got` until n bytes stand there.

        Returns how many stand there, fewer than n at the end of the input. The held bytes stay held, and the buffer
        has room for all that comes: on an error it is put there, and nothing that could fail is left to do.
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

    # ---- what is held

    def fill(self, n=1, *, timeout=...):
        """Wait until n bytes are held: how many are, fewer than n at the end of the input. peek() then shows them."""
        cdef size_t size = to_size(n, "n")
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            return self.hold(size, timeout)
        finally:
            leave_reading(self)

    def peek(self, n=0, *, timeout=...):
        """Show what is held, after one read if nothing is, and consume nothing. b"" at the end of the input.

        n is a hint, as in io: it changes nothing. To wait for n bytes, call fill(n) first.
        """
        cdef size_t held
        to_limit(n, "n")
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            held = self.hold_some(timeout)
            return PyBytes_FromStringAndSize(buffer_start(&self.inp), held)
        finally:
            leave_reading(self)

    @property
    def buffered(self):
        """How many bytes have been received and not yet read. select() and poll() cannot see these."""
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return buffer_held(&self.inp) if RIO_HAS_GIL else rio_size_get(&self.shown)

    def read_buffered(self):
        """Take all that is held, without touching the descriptor."""
        enter(self, &self.reading)
        try:
            return take(self, buffer_held(&self.inp))
        finally:
            leave_reading(self)

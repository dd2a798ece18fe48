# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False, binding=False
# cython: boundscheck=False, wraparound=False, embedsignature=True, embedsignature.format=clinic
"""The reading half of class Rio: the methods that join reads to framing.

Every method has the same shape. It looks for its frame in what is held; while the frame is not whole it lets one more
read come in; only when the result exists does it consume. So whatever interrupts it leaves the buffer as it was, with
what came in meanwhile added.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_Clear, PyErr_Occurred
from cpython.long cimport PyLong_CheckExact
from cpython.number cimport PyNumber_AsSsize_t
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport SIZE_MAX
from libc.string cimport memcpy

from rioecho._buffer cimport (
    FOUND,
    TOO_LONG,
    buffer_consume,
    buffer_held,
    buffer_put,
    buffer_reserve,
    buffer_start,
    find_frame,
    find_line,
    framing,
)
from rioecho._channel cimport Channel, check_timeout, enter, leave, rio_call
from rioecho._posix cimport RIO_CLOSED, rio_bytes_cut

from rioecho.errors import IncompleteRead, LineTooLong


cdef enum:
    # A large read gets its memory in pieces no larger than this until that much has come in, so that a length that
    # a peer made up costs nothing (untouched memory costs address space only).
    DIRECT_START = 1 << 24
    # How much more than max_line skipline() holds of a line before it throws the beginning away, at least.
    SKIP_AT_ONCE = 1 << 16
    # One read of a large read, at most.
    DIRECT_STEP = 1 << 20
    # The shortest result of a large read that stays in the memory of the whole: less would be held by pages of its own.
    CUT_LEAST = 1 << 15

cdef object MINUS_ONE = -1   # the default of a size, compared by identity: the usual call converts nothing


cdef extern from "Python.h":
    Py_ssize_t PyLong_AsSsize_t(object n) noexcept   # -1 may be an error, which is asked for only then


cdef inline Py_ssize_t to_limit(object n, object name) except -2:
    """A size argument for which None and any negative number mean "no limit": -1."""
    cdef Py_ssize_t size
    if PyLong_CheckExact(n):   # the usual case, without the calls that the general one needs
        size = PyLong_AsSsize_t(n)
        if size >= 0:
            return size
        if not PyErr_Occurred():
            return -1
        PyErr_Clear()
    return any_to_limit(n, name)


cdef Py_ssize_t any_to_limit(object n, object name) except -2:
    cdef Py_ssize_t size
    if n is None:
        return -1
    try:
        size = PyNumber_AsSsize_t(n, OverflowError)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(n).__name__}") from None
    except OverflowError:
        if n < 0:
            return -1
        raise ValueError(f"{name} is larger than any object can be: {n}") from None
    return max(size, -1)


cdef Py_ssize_t to_size(object n, object name) except -1:
    """A size argument that must be there and must not be negative."""
    cdef Py_ssize_t size
    if n is None:
        raise TypeError(f"{name} must be an integer, not None")
    size = to_limit(n, name)
    if size < 0:
        raise ValueError(f"{name} must not be negative: {n}")
    return size


cdef inline void consume(Reader self, size_t n) noexcept:
    """Take the first n held bytes out, now that the caller has them."""
    buffer_consume(&self.inp, n)
    self.skipped = 0


cdef inline bytes take(Reader self, size_t n):
    """The first n held bytes, consumed."""
    cdef bytes result = PyBytes_FromStringAndSize(buffer_start(&self.inp), n)
    consume(self, n)
    return result


cdef inline void copy_out(Reader self, char *to, size_t n) noexcept:
    """Copy the first n held bytes."""
    if n:
        memcpy(to, buffer_start(&self.inp), n)


cdef class Reader(Channel):
    # ---- lines

    def readline(self, limit=-1, *, timeout=...):
        """Read one line, its newline included (RIO's rio_readlineb, CS:APP 10.5.2).

        Returns the line as bytes; at most `limit` bytes of it if `limit` is not negative, and then the rest comes with
        the next call. At the end of the input: what is left without a newline, then b"".

        Raises LineTooLong, if no limit is given, for a line of more than max_line bytes; TimeoutError, or
        BlockingIOError with a timeout of 0; OSError. The bytes stay held, and the next call goes on.
        """
        cdef size_t n
        cdef Py_ssize_t most
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            if limit is MINUS_ONE or (most := to_limit(limit, "limit")) < 0:
                if find_line(&self.inp, self.line_limit, &n) != FOUND:
                    n = self.wait_line(self.line_limit, False, timeout)
            elif find_line(&self.inp, most, &n) != FOUND:
                n = self.wait_line(most, True, timeout)
            return take(self, n)
        finally:
            leave(&self.reading)

    def __iter__(self):
        if self.reading == RIO_CLOSED:
            self.refuse(&self.reading)
        return self

    def __next__(self):
        """The next line, as from readline(); stops at the end of the input."""
        cdef size_t n
        enter(self, &self.reading)
        try:
            if find_line(&self.inp, self.line_limit, &n) != FOUND:
                n = self.wait_line(self.line_limit, False, ...)
                if n == 0:
                    raise StopIteration
            return take(self, n)
        finally:
            leave(&self.reading)

    def readlines1(self, *, timeout=...):
        """Read every whole line that is there after at most one read, as a list; wait for the first one.

        At the end of the input: a list of the unterminated last line, then an empty list. Raises as readline() does;
        lines before one that is too long are returned first.
        """
        cdef size_t n
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            if find_line(&self.inp, self.line_limit, &n) != FOUND:
                n = self.wait_line(self.line_limit, False, timeout)
            return self.take_lines(n)
        finally:
            leave(&self.reading)

    def readlines(self, hint=-1, *, timeout=...):
        """Read lines to the end of the input, or until they are more than `hint` bytes, as a list.

        Nothing is consumed before the list is complete. Raises as readline() does.
        """
        cdef rio_call call
        cdef size_t whole = 0   # how many of the held bytes are in `lines` already
        cdef size_t scanned = 0, n = 0, held
        cdef framing answer
        cdef Py_ssize_t enough
        cdef list lines = []
        enter(self, &self.reading)
        try:
            enough = to_limit(hint, "hint")
            self.start(&call, timeout)
            while enough <= 0 or <Py_ssize_t>whole <= enough:
                held = buffer_held(&self.inp)
                answer = find_frame(
                    buffer_start(&self.inp) + whole, held - whole, b"\n", 1, &scanned, self.line_limit, &n
                )
                if answer == TOO_LONG:
                    raise LineTooLong(self.line_limit, held)
                if answer != FOUND:
                    if self.fill_once(&call, held + 1):
                        continue
                    n = held - whole
                    if n == 0:
                        break
                lines.append(PyBytes_FromStringAndSize(buffer_start(&self.inp) + whole, n))
                whole += n
                scanned = 0
            consume(self, whole)
            return lines
        finally:
            leave(&self.reading)

    def skipline(self, *, timeout=...):
        """Throw away the bytes through the next newline: the way on after LineTooLong.

        Returns their number; at the end of the input, the number of those that were left. They are thrown away once
        the newline is there, so an interruption (TimeoutError and so on) loses nothing. Only of a line that is longer
        than max_line by more than a buffer is the beginning thrown away before, so that the memory stays bounded; it
        counts in what the next skipline() returns.
        """
        cdef rio_call call
        cdef size_t n = 0
        cdef framing answer
        cdef object count   # made before anything is consumed: an int needs memory, too
        enter(self, &self.reading)
        try:
            self.start(&call, timeout)
            while True:
                answer = find_line(&self.inp, SIZE_MAX, &n)
                if answer == FOUND:
                    break
                n = buffer_held(&self.inp)
                if n > self.line_limit and n - self.line_limit > max(self.inp.base, <size_t>SKIP_AT_ONCE):
                    buffer_consume(&self.inp, n)
                    self.skipped += n
                    n = 0
                if self.fill_once(&call, n + 1) == 0:
                    break
            count = n + self.skipped
            consume(self, n)
            return count
        finally:
            leave(&self.reading)

    cdef ssize_t wait_line(self, size_t limit, bint cut, object timeout) except -1:
        """No newline is in the first `limit` held bytes. Read on until there is: the line's length.

        With `cut`, `limit` bytes are enough; without, more than `limit` bytes are an error. 0 at the end of the input.
        """
        cdef rio_call call
        cdef size_t n = 0, held
        cdef framing answer
        self.start(&call, timeout)
        while True:
            answer = find_line(&self.inp, limit, &n)
            if answer == FOUND:
                return n
            held = buffer_held(&self.inp)
            if cut and held >= limit:
                return limit
            if answer == TOO_LONG:
                raise LineTooLong(limit, held)
            if self.fill_once(&call, held + 1) == 0:
                return held

    cdef list take_lines(self, size_t n):
        """The first held line, of n bytes, and every whole line after it, consumed."""
        # In variables of their own: for all the compiler knows, making a bytes object may change a field.
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

    # ---- any other separator

    def readuntil(self, sep=b"\n", limit=-1, *, timeout=...):
        """Read through the separator, one byte or more.

        Returns the bytes, separator included. Raises IncompleteRead at the end of the input, with what was left in
        `.partial`; LineTooLong if no separator ends within `limit` bytes (max_line, if no limit is given), and the
        bytes stay held; TimeoutError, BlockingIOError and OSError as readline() does.
        """
        cdef rio_call call
        cdef size_t n = 0, held, most
        cdef framing answer
        cdef bytes separator
        if not isinstance(sep, (bytes, bytearray, memoryview)):
            raise TypeError(f"sep must be bytes, not {type(sep).__name__}")
        separator = bytes(sep)
        if not separator:
            raise ValueError("sep must not be empty")
        most = self.line_limit if limit is MINUS_ONE or limit is None else to_size(limit, "limit")
        enter(self, &self.reading)
        try:
            if self.sep != separator:
                self.sep = separator
                self.inp.sep_scanned = 0
            self.start(&call, timeout)
            while True:
                held = buffer_held(&self.inp)
                answer = find_frame(
                    buffer_start(&self.inp), held, separator, len(separator), &self.inp.sep_scanned, most, &n
                )
                if answer == FOUND:
                    return take(self, n)
                if held >= most:
                    raise LineTooLong(most, held)
                if self.fill_once(&call, held + 1) == 0:
                    self.incomplete(None)
        finally:
            leave(&self.reading)

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
            leave(&self.reading)

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
            leave(&self.reading)

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
            leave(&self.reading)

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
                leave(&self.reading)
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
            if CUT_LEAST <= come < size and not exactly:
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
            leave(&self.reading)

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
            leave(&self.reading)

    @property
    def buffered(self):
        """How many bytes have been received and not yet read. select() and poll() cannot see these."""
        if self.reading == RIO_CLOSED:
            self.refuse(&self.reading)
        return buffer_held(&self.inp)

    def has_line(self):
        """Is a whole line held, so that readline() would not touch the descriptor?"""
        cdef size_t n
        enter(self, &self.reading)
        try:
            return find_line(&self.inp, SIZE_MAX, &n) == FOUND
        finally:
            leave(&self.reading)

    def read_buffered(self):
        """Take all that is held, without touching the descriptor."""
        enter(self, &self.reading)
        try:
            return take(self, buffer_held(&self.inp))
        finally:
            leave(&self.reading)

"""The fast part of ``rioecho.aio.streams``: a StreamReader's calls, and what its protocol receives.

The rules are asyncio's: a line or a frame has at most ``limit`` bytes in front of its separator, and the errors are
``LimitOverrunError`` and ``IncompleteReadError``. The names with an underscore are those of ``asyncio.StreamReader``,
which subclasses and clients use.
"""

import asyncio
from asyncio import IncompleteReadError, LimitOverrunError

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport FOUND, NEED_MORE, buffer_held, buffer_init, buffer_start, find_line
from rioecho._core.convert cimport to_limit, to_size
from rioecho._rio.fed cimport LINE, MISSING, NUMBER, SOME, UNTIL, ask, request
from rioecho._rio.framing cimport MORE
from rioecho._rio.input cimport enter, leave_reading, take
from rioecho.aio._call cimport Call, new_call
from rioecho.aio._held cimport Holder
from rioecho.aio._room cimport missing

cdef object WAIT_FOR_DATA = asyncio.StreamReader._wait_for_data
cdef object DATA_RECEIVED = asyncio.StreamReaderProtocol.data_received


cdef enum:
    BASE = 1 << 16   # size in bytes of the first allocation, and of the memory for bytes that are passed on


cdef size_t to_stream_limit(object limit) except? 0:
    """Convert a limit, which may be any number: asyncio only compares it."""
    try:
        return min(int(limit), <Py_ssize_t>(SIZE_MAX // 4))
    except OverflowError:   # infinity
        return SIZE_MAX // 4


cdef class StreamBase(Holder):
    def __cinit__(self, *args, **options):
        buffer_init(&self.inp, BASE)
        self.limit = self.line_limit = BASE

    # ---- what subclasses and clients use

    @property
    def _limit(self):
        """The maximum number of bytes in front of a separator. The transport pauses when twice as many are held."""
        return self.limit

    @_limit.setter
    def _limit(self, limit):
        self.line_limit = to_stream_limit(limit)
        self.limit = limit

    @property
    def _eof(self):
        """Whether the input has ended."""
        return bool(self.ended)

    @_eof.setter
    def _eof(self, ended):
        self.ended = ended

    def at_eof(self):
        """Report whether the input has ended and all of it was read."""
        return bool(self.ended) and not buffer_held(&self.inp)

    def feed_data(self, data):
        """Add ``data`` behind the bytes that are held, and wake the call that waits for them."""
        if self.ended:
            raise AssertionError("feed_data after feed_eof")
        if data:
            self.add(data, True)
            self.fed()

    def feed_eof(self):
        """Mark the end of the input, and wake the call that waits."""
        self.ended = True
        self.wake()

    # ---- calls

    def readline(self):
        """Read a line, including its newline.

        At the end of the input it is what is left, then ``b""``. Raises ``ValueError`` if the line has more than
        ``limit`` bytes before its newline; they stay held.
        """
        cdef Call call = new_call(self, "readline", None)
        ask(&call.asked, LINE, 0)
        return call

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef Call call = new_call(self, "readline", None)
        ask(&call.asked, LINE, 0)
        call.iterates = True
        return call

    def readuntil(self, separator=b"\n"):
        """Read through ``separator``, or through the one of a tuple that ends first.

        Raises ``IncompleteReadError`` at the end of the input, with all bytes that were left in ``partial``, and
        ``LimitOverrunError`` if there are more than ``limit`` bytes before the separator; they stay held.
        """
        cdef Call call = new_call(self, "readuntil", None)
        ask(&call.asked, UNTIL, 0)
        call.separator = separator
        call.asked.sep = <PyObject *>separator
        return call

    def read(self, n=-1):
        """Read at most ``n`` bytes as soon as there is one; all up to the end of the input if ``n`` is negative.

        Returns ``b""`` at the end of the input.
        """
        cdef Call call = new_call(self, "read", None)
        cdef Py_ssize_t size = 0
        try:
            if n is None:
                raise TypeError("n must be an integer, not None")
            size = to_limit(n, "n")
        except Exception as error:   # a coroutine raises when it is awaited
            call.given = error
        if size < 0:
            ask(&call.asked, NUMBER, SIZE_MAX)
        else:
            ask(&call.asked, SOME, size)
        return call

    def readexactly(self, n):
        """Read exactly ``n`` bytes.

        Raises ``IncompleteReadError`` at the end of the input, with all bytes that were left in ``partial``.
        """
        cdef Call call = new_call(self, "readexactly", None)
        cdef Py_ssize_t size = 0
        try:
            if n < 0:
                raise ValueError("readexactly size can not be less than zero")
            size = to_size(n, "n")
        except Exception as error:   # a coroutine raises when it is awaited
            call.given = error
        ask(&call.asked, NUMBER, size)
        call.asked.strict = True
        return call

    cdef int begin(self, Call call) except -1:
        if call.given is not None:
            raise call.given
        if call.asked.what == UNTIL:
            check_separator(call.separator)
        if self._exception is not None:
            raise self._exception
        return 0

    cdef object answer(self, request *r):
        """Try a call. Returns its result, or MISSING."""
        cdef ssize_t n
        enter(self, &self.reading)
        try:
            n = self.end(r)
            if n == MORE:
                return MISSING
            result = take(self, n)
        finally:
            leave_reading(self)
        if self._paused:
            self.resume_transport()
        return result

    cdef ssize_t end(self, request *r) except -1:
        """Return the number of bytes of the result of a call, or MORE."""
        cdef size_t held
        if r.what == LINE:
            return self.whole_line()
        if r.what == UNTIL:
            self.set_separator(<object>r.sep)   # each time: another task may have used another one since
            return self.whole_until()
        held = buffer_held(&self.inp)
        if r.what == SOME:
            return min(held, r.n) if held or self.ended or r.n == 0 else MORE
        if held >= r.n:
            return r.n
        if not self.ended:
            return MORE
        if r.strict:
            self.incomplete_read(r.n)
        return held

    cdef ssize_t whole_line(self) except -1:
        cdef size_t n = 0, held = buffer_held(&self.inp)
        if find_line(&self.inp, SIZE_MAX, &n) == FOUND:
            if n - 1 <= self.line_limit:
                return n
        elif held <= self.line_limit:
            return held if self.ended else MORE
        try:
            self.overrun(n != 0, n - 1 if n else held)
        except LimitOverrunError as error:
            raise ValueError(error.args[0])

    cdef ssize_t whole_until(self) except -1:
        cdef object longest
        cdef ssize_t n = self.separator_end(SIZE_MAX, False)
        cdef ssize_t before
        if n != MORE:
            before = n - match_length(self.sep, buffer_start(&self.inp), n)
            if <size_t>before > self.line_limit:
                self.overrun(True, before)
            return n
        longest = max(self.sep, key=len) if type(self.sep) is tuple else self.sep
        before = <ssize_t>buffer_held(&self.inp) + 1 - len(longest)
        if before > 0 and <size_t>before > self.line_limit:
            self.overrun(False, before)
        if self.ended:
            self.incomplete_read(None)
        return MORE

    cdef int overrun(self, bint found, size_t n) except -1:
        """Raise ``LimitOverrunError``: n is the number of bytes without, or in front of, the separator."""
        if found:
            raise LimitOverrunError("Separator is found, but chunk is longer than limit", n)
        raise LimitOverrunError("Separator is not found, and chunk exceed the limit", n)

    cdef int incomplete_read(self, object expected) except -1:
        """Raise ``IncompleteReadError`` with all bytes that are held."""
        raise IncompleteReadError(take(self, buffer_held(&self.inp)), expected)

    # ---- the call that waits

    cdef object wait(self, Call call, bint again):
        """Return what a call waits for: a future, or what a ``_wait_for_data()`` of a subclass returns."""
        name = "readuntil" if call.asked.what == LINE else call.name
        if type(self)._wait_for_data is not WAIT_FOR_DATA:
            return self._wait_for_data(name)
        if self._waiter is not None or (self.reader is not None and self.reader is not call):   # waits, or was woken
            raise RuntimeError(f"{name}() called while another coroutine is already waiting for incoming data")
        if self._paused:   # more than was held is needed
            self._paused = False
            self._transport.resume_reading()
        self.reader = call
        self._waiter = self.future = self._loop.create_future()
        return self.future

    cdef void finish(self, Call call) noexcept:
        """Forget a call that has waited."""
        if self.reader is call:
            self.reader = None
            if self._waiter is self.future:
                self._waiter = None
            self.future = None

    cdef bint may_have(self, request *r) noexcept:
        """Report whether a call that waits may succeed, or fail, with what is held."""
        cdef size_t n
        if r.what == LINE:
            return find_line(&self.inp, SIZE_MAX, &n) != NEED_MORE or buffer_held(&self.inp) > self.line_limit
        return r.what != NUMBER or buffer_held(&self.inp) >= r.n

    cdef int wake(self) except -1:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():   # it may have been cancelled in the same turn of the loop
                waiter.set_result(None)
        return 0

    cdef int fed(self) except -1:
        """Wake who waits for the bytes that have come, or stop reading if too many are held that nobody wants."""
        cdef size_t held = buffer_held(&self.inp)
        if self._waiter is not None and self._waiter is self.future:
            if self.may_have(&self.reader.asked):
                self.wake()
            return 0   # the call takes them, or needs more
        self.wake()
        if self._paused or self._transport is None or held <= 2 * self.line_limit:
            return 0
        try:
            self._transport.pause_reading()
        except NotImplementedError:
            self._transport = None   # it cannot be paused: do not try again
        else:
            self._paused = True
        return 0

    cdef int resume_transport(self) except -1:
        if buffer_held(&self.inp) <= self.line_limit:
            self._paused = False
            self._transport.resume_reading()
        return 0

    # ---- what the loop brings

    cdef object room(self, Py_ssize_t hint):
        """Return a view of writable memory behind the held bytes."""
        view = self.lend(hint)
        if view is None:
            raise MemoryError
        return view

    cdef size_t wanted(self, Py_ssize_t hint) noexcept:
        cdef size_t least = self.inp.base // 4
        return least if self.reader is None else max(least, missing(self, &self.reader.asked))

    cdef int came_in(self, size_t n) except -1:
        """Hold n more bytes, which the loop has stored in ``room()``."""
        if self.ended:
            raise AssertionError("buffer_updated after feed_eof")
        self.store(n)
        return self.fed()


cdef int check_separator(object separator) except -1:
    """Raise asyncio's error for a separator that cannot be found."""
    if isinstance(separator, tuple):
        if not separator:
            raise ValueError("Separator should contain at least one element")
        shortest = min([len(each) for each in separator])
    else:
        shortest = len(separator)
    if shortest == 0:
        raise ValueError("Separator should be at least one-byte string")
    return 0


cdef Py_ssize_t match_length(object sep, const char *data, size_t n) except -1:
    """Return the length of the separator, the shortest one of a tuple, at the end of n bytes."""
    if type(sep) is not tuple:
        return len(sep)
    line = PyBytes_FromStringAndSize(data, n)
    return min([len(each) for each in <tuple>sep if line.endswith(each)])


cdef class ProtocolBase:
    """What the loop calls when bytes come. It stores them in the reader's memory.

    They go through ``data_received()`` and ``feed_data()``, in a copy, where a subclass has one of its own.
    """

    def get_buffer(self, sizehint):
        """Return the memory in which the loop stores what comes next."""
        reader = self._stream_reader
        if self.is_direct(reader):
            self.target = self._stream_reader_wr
            return (<StreamBase>reader).room(sizehint)
        if self.scratch is None:
            self.scratch = bytearray(BASE)
        return memoryview(self.scratch)

    def buffer_updated(self, nbytes):
        """Take ``nbytes`` bytes that the loop has stored."""
        cdef StreamBase reader
        target, self.target = self.target, None
        if target is None:
            self.data_received(bytes(memoryview(self.scratch)[:nbytes]))
            return
        reader = target()
        if reader is not None:
            reader.came_in(nbytes)

    cdef bint is_direct(self, object reader) except -1:
        """Report whether nobody wants to see the bytes on their way into the reader."""
        return (
            isinstance(reader, StreamBase)
            and type(self).data_received is DATA_RECEIVED
            and type(reader).feed_data is FEED_DATA
            and "feed_data" not in reader.__dict__
            and "data_received" not in self.__dict__
        )


cdef object FEED_DATA = StreamBase.feed_data

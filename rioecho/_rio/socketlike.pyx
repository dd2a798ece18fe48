"""The transport of a Rio over an object whose I/O is not its descriptor's: its own recv() or recv_into(), and send().

Such an object waits by itself: a gevent or an eventlet socket lets other greenlets run, a paramiko channel waits for a
thread, an overridden method may do anything. So nothing polls in its place. ``Patience`` sets the object's timeout to
the time left of the call, makes one attempt, and puts the object's own timeout back.

* Several attempts may be in progress in one object: that of a reader and that of a writer, and those of several Rios.
  The timeout is then the shortest that any of them asked for. An attempt that ends too early for that reason is simply
  repeated, while one that ended too late would break the promise of its caller.
* A would-block, an expired timeout and the end of the input are reported in many ways; ``reason_of()`` knows them. All
  other exceptions are raised unchanged.
* Once the object has moved bytes nothing may be raised before they are stored or counted: ``keep()`` and
  ``raise_late()``, as in _rio/tls.pyx.

If the object's methods are written in Python, a signal handler that raises inside them, after they have taken bytes and
before they return, takes these bytes along. They cannot be known outside.
"""

import sys
from _thread import RLock

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EPIPE, ETIMEDOUT
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcpy

from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    rio_assert,
    rio_monotonic_ns,
    rio_pipe_hold,
    rio_pipe_release,
)
from rioecho._rio.handlers cimport raised_by_handler, runs_handlers
from rioecho._rio.registry cimport register, registered
from rioecho._rio.transport cimport OWN_TIMEOUT, RECORD


cdef enum:
    CO_COROUTINE = 0x80      # in co_flags of a function's code, as in module inspect
    READ = 0
    SEND = 1
    STEP = 65536             # maximum number of bytes of one send, which gets a copy of them
    ZEROS = 3                # so many sends in succession that accept nothing are an end; gevent's returns 0 at times
    SLACK = 20_000_000       # nanoseconds that a source's clock may be ahead when its timeout expires
    DAY = 86_400_000_000_000   # the longest timeout that is set, in nanoseconds: C sockets refuse more than 24 days


cdef str MODULES = "rioecho._rio.socketlike"   # for raised_by_handler()


cdef Patience patience_of(object source):
    """Return the Patience of an object, which all its Rios share."""
    cdef Patience made = registered(source, Patience)
    if made is None:
        made = Patience.__new__(Patience)
        made.source = source
        made.guard = RLock()
        made.settable = hasattr(source, "settimeout")
        made = register(made)
    return made


cdef reason reason_of(object error) except *:
    """Return what an exception of a source means."""
    if isinstance(error, BlockingIOError):
        return WOULD_BLOCK
    if isinstance(error, TimeoutError):   # with ETIMEDOUT it is TCP that has given up
        return FAILED if error.errno == ETIMEDOUT else TIMED_OUT
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(error, ssl.SSLError):
        if isinstance(error, (ssl.SSLWantReadError, ssl.SSLWantWriteError)):
            return WOULD_BLOCK
        return TIMED_OUT if "timed out" in str(error) else FAILED   # gevent's
    if isinstance(error, OSError):
        return WOULD_BLOCK if error.errno == EAGAIN else FAILED
    openssl = sys.modules.get("OpenSSL.SSL")
    if openssl is not None and isinstance(error, openssl.Error):
        if isinstance(error, (openssl.WantReadError, openssl.WantWriteError)):
            return WOULD_BLOCK
        if isinstance(error, openssl.ZeroReturnError):
            return ENDED
        if isinstance(error, openssl.SysCallError) and error.args[:1] == (-1,):   # "Unexpected EOF"
            return ENDED
    return FAILED


cdef class Patience(Registered):
    """The timeout of one object, and the attempts that have set it."""

    cdef void forked(self) noexcept:
        """Forget the attempts of the threads that the child does not have."""
        if not self.guard._is_owned():   # else the fork was under a call that is in there, and goes on
            self.guard._at_fork_reinit()
            self.users[:] = [0, 0]

    cdef int64_t shortest(self) noexcept:
        """Return the shortest time that any attempt in progress may wait."""
        cdef int64_t read = self.limits[READ] if self.users[READ] else INT64_MAX
        cdef int64_t send = self.limits[SEND] if self.users[SEND] else INT64_MAX
        return min(read, send)

    cdef bint in_use(self) noexcept:
        return self.users[READ] + self.users[SEND] > 0

    cdef bint enter(self, int side, int64_t patience) except -1:
        """Begin an attempt that may wait for ``patience`` nanoseconds, -1 for any time.

        Reports whether it may end earlier because of another attempt. ``leave()`` must follow, unless this raises.
        """
        cdef int64_t limit = INT64_MAX if patience < 0 else patience
        with self.guard:
            if not self.altered:
                # Without gettimeout() there is no way to know; None is what an object begins with.
                self.own = self.current = self.source.gettimeout() if hasattr(self.source, "gettimeout") else None
            self.users[side] += 1
            self.limits[side] = limit
            try:
                self.set(self.shortest())
            except BaseException:
                self.leave(side)
                raise
            return self.shortest() < limit

    cdef object leave(self, int side):
        """End an attempt. Returns an exception that a signal handler raised meanwhile, or None."""
        cdef bint counted = False
        cdef object late = None
        for _ in range(3):   # a handler may raise inside settimeout(), before it has taken effect
            try:
                with self.guard:
                    if not counted:
                        counted = True
                        self.users[side] = max(self.users[side] - 1, 0)
                    if self.in_use():
                        self.set(self.shortest())
                    elif self.altered:
                        if (
                            self.current is self
                            or not hasattr(self.source, "gettimeout")
                            or self.source.gettimeout() == self.current
                        ):
                            self.changes += 1
                            self.source.settimeout(self.own)
                        # else somebody has set another one meanwhile
                        self.altered = False
                return late
            except OSError:
                self.altered = self.altered and self.in_use()
                return late   # the object was closed meanwhile
            except BaseException as error:
                late = error if late is None else late
        return late

    cdef int set(self, int64_t limit) except -1:
        cdef object timeout = None if limit == INT64_MAX else min(limit, <int64_t>DAY) / 1e9
        if timeout == self.current:
            return 0
        rio_assert(self.settable)   # else the callers leave the timeout alone
        self.altered = True
        self.changes += 1
        self.current = self   # unknown: what follows may raise before or after it has taken effect
        self.source.settimeout(timeout)
        self.current = self.source.gettimeout() if hasattr(self.source, "gettimeout") else timeout
        return 0

    cdef object timeout(self):
        """Return the object's own timeout, even while an attempt has set another one."""
        with self.guard:
            if self.altered:
                return self.own
            return self.source.gettimeout() if hasattr(self.source, "gettimeout") else None


def socket_like(source, bint by_recv, /):
    """Return a transport over an object. ``by_recv``: use its ``recv()`` even if it has ``recv_into()``.

    Raises ``TypeError`` for an object whose methods are coroutine functions.
    """
    cdef SocketLike self = SocketLike.__new__(SocketLike)
    self.source = source
    self.waits = True
    self.own_errors = True
    self.into = None if by_recv else getattr(source, "recv_into", None)
    self.get = getattr(source, "recv", None)
    self.put = getattr(source, "send", None)
    for method in (self.get if self.into is None else self.into, self.put):
        code = getattr(getattr(method, "__func__", method), "__code__", None)
        if getattr(code, "co_flags", 0) & CO_COROUTINE:
            raise TypeError(
                f"{method.__name__}() of this {type(source).__name__} is a coroutine function: a Rio cannot await it"
            )
    self.patience = patience_of(source)
    self.untimed = not self.patience.settable
    self.holds_signals = not self.untimed   # else its send may wait
    self.has_fd = hasattr(source, "fileno")
    inner = getattr(source, "connection", source)   # that of urllib3's WrappedSocket
    self.room = RECORD if hasattr(source, "pending") or hasattr(inner, "pending") else 1   # may decrypt that at once
    return self


cdef class SocketLike(Transport):
    cdef size_t least_room(self) noexcept:
        return self.room

    cdef object timeout(self):
        return self.patience.timeout()

    cdef ssize_t recv(self, char *data, size_t n, int64_t patience, short *want) except -2:
        """Read up to n bytes. Returns their number, 0 at EOF, or -1 if the time was over.

        If the source would block although it may wait, ``want`` receives the event to poll for.
        """
        cdef ssize_t got = -1
        cdef bint early = False, entered = False
        cdef size_t changes
        cdef int64_t began
        want[0] = 0
        if self.untimed:
            patience = OWN_TIMEOUT
        elif patience == OWN_TIMEOUT and self.patience.in_use():
            patience = to_nanoseconds(self.patience.timeout())
        if patience != OWN_TIMEOUT:
            early = self.patience.enter(READ, patience)
            entered = True
        changes = self.patience.changes
        began = rio_monotonic_ns()
        try:
            got = self.recv_once(data, n)
        except BaseException as error:
            early = early or changes != self.patience.changes
            got = self.no_progress(error, patience, began, early, POLLIN, want)
        finally:
            if entered:
                self.keep(self.patience.leave(READ))
        if got <= 0:
            self.raise_late()
        return got

    cdef ssize_t recv_once(self, char *data, size_t n) except -2:
        """Call the source's method. Returns the number of bytes."""
        cdef Py_buffer come
        cdef Py_ssize_t got = 0
        if self.into is not None:
            view = PyMemoryView_FromMemory(data, n, PyBUF_WRITE)
            try:
                result = self.into(view)
                if result is not None:
                    got = result
            finally:
                try:
                    view.release()
                except BufferError as error:   # the source has kept a part of it; the bytes are here all the same
                    self.keep(error)
            if result is None:
                self.refuse()
            if not 0 <= got <= <Py_ssize_t>n:
                raise OSError(f"recv_into() of {type(self.source).__name__} returned {got}, not 0 to {n}")
            return got
        result = self.get(n)
        if result is None:
            self.refuse()
        PyObject_GetBuffer(result, &come, PyBUF_SIMPLE)
        try:
            if <size_t>come.len > n:
                raise OSError(f"recv() of {type(self.source).__name__} returned {come.len} bytes, not {n} at most")
            memcpy(data, come.buf, come.len)
            return come.len
        finally:
            PyBuffer_Release(&come)

    cdef int refuse(self) except -1:
        """Raise what the ``None`` of a raw stream means."""
        raise BlockingIOError(EAGAIN, f"{type(self.source).__name__} has no data and does not wait")

    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2:
        """Send up to n bytes. Returns how many were accepted, or -1; ``want`` is then set as by ``recv()``.

        An attempt that must not wait sets ``want`` to POLLOUT in any case.
        """
        cdef ssize_t put = -1
        cdef bint early = False, entered = False, hurry = patience == 0
        cdef size_t changes
        cdef int64_t began
        cdef bytes copy
        rio_assert(n > 0)   # nothing is ever half sent
        want[0] = 0
        copy = PyBytes_FromStringAndSize(data, min(n, <size_t>STEP))
        if self.untimed:
            patience = OWN_TIMEOUT
        elif patience == OWN_TIMEOUT and self.patience.in_use():
            patience = to_nanoseconds(self.patience.timeout())
        if patience != OWN_TIMEOUT:
            early = self.patience.enter(SEND, patience)
            entered = True
        changes = self.patience.changes
        began = rio_monotonic_ns()
        try:
            put = self.send_once(copy)
        except BaseException as error:
            early = early or changes != self.patience.changes
            put = self.no_progress(error, 0 if hurry else patience, began, early, POLLOUT, want)
        finally:
            if entered:
                self.keep(self.patience.leave(SEND))
        if put < 0:
            self.raise_late()
            if hurry:
                want[0] = POLLOUT
        return put

    cdef ssize_t send_once(self, bytes data) except -2:
        """Call the source's ``send()``. Returns the number of bytes, or -1 if it should be called again."""
        cdef Py_ssize_t put
        name = type(self.source).__name__
        if self.put is None:
            raise AttributeError(f"{name} has no send()")
        rio_pipe_hold()
        try:
            result = self.put(data)
        finally:
            rio_pipe_release()
        if result is None:
            raise TypeError(f"send() of {name} returned None, not the number of bytes that it has sent")
        put = result
        if not 0 <= put <= len(data):
            raise OSError(f"send() of {name} returned {put}, not 0 to {len(data)}")
        if put:
            self.zeros = 0
            return put
        self.zeros += 1
        if self.zeros >= ZEROS:
            self.zeros = 0
            raise BrokenPipeError(EPIPE, f"send() of {name} sends nothing: it returned 0 again and again")
        return -1

    cdef ssize_t no_progress(
        self, object error, int64_t patience, int64_t began, bint early, short event, short *want
    ) except -2:
        """Return -1 if an attempt that ended with an exception may be repeated, 0 at EOF; else raise the exception.

        ``began``: the time of its beginning. ``early``: another attempt has shortened the object's timeout.
        """
        cdef reason why = reason_of(error)
        if why != FAILED and runs_handlers(&self.other_thread) and raised_by_handler(error, MODULES):
            raise error
        if why == ENDED and event == POLLIN:
            return 0
        if early and (why == WOULD_BLOCK or why == TIMED_OUT):
            return -1
        if why == WOULD_BLOCK:
            if patience == 0:
                return -1
            if self.has_fd and (patience != OWN_TIMEOUT or self.untimed or self.patience.timeout() != 0):
                want[0] = event
                return -1
            if isinstance(error, BlockingIOError):
                raise error
            raise BlockingIOError(EAGAIN, f"the source would block: {error}") from error
        if why == TIMED_OUT:
            if patience >= 0 and rio_monotonic_ns() - began >= max(patience // 2, patience - SLACK):
                return -1   # else a signal handler has raised it
            if not isinstance(error, TimeoutError):
                raise TimeoutError(str(error)) from error
        raise error

"""How an event loop calls the handlers of a LineServer, and the connection that a handler gets.

The loop owns its connections; no other thread touches them. It calls a handler with the GIL, through the functions of
``handler_t``. What a handler writes in such a call is appended to one buffer, which the loop sends when the call has
returned. Everything else (a write to another connection, a call of another thread) is a post: it is kept in the
``Connection``, and the loop does it at the end of its turn, for which it is woken.
"""

import logging
import os
from socket import socket

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_CheckExact, PyList_GET_SIZE
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, ECONNABORTED
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memchr, memcpy

from rioecho._core.buffer cimport buffer_added, buffer_held, buffer_put, buffer_reserve, rio_buffer
from rioecho._core.convert cimport os_error, to_size
from rioecho._core.posix cimport (
    RIO_FREE,
    RIO_SOURCE_UNIX,
    RIO_SOURCE_UNKNOWN,
    F_DUPFD_CLOEXEC,
    close,
    fcntl,
    getpid,
    rio_assert,
    rio_atomic_add,
    rio_atomic_load,
    rio_bool_set,
    rio_flag_put,
    rio_source,
    rio_source_of,
)
from rioecho._server.accepted cimport Accepted
from rioecho._server.connection cimport conn_header, conn_send_early
from rioecho._server.loop cimport (
    ABORTED,
    BROKEN,
    CUT_OFF,
    FAILED,
    FINISHED,
    IDLE,
    OPEN,
    TOO_LONG,
    conn_t,
    loop_t,
    outlet_lock,
    reason,
)
from rioecho._server.notify cimport WakePipe
from rioecho.errors import LineTooLong
from rioecho._server.accepted import source_name
from rioecho._server.engine import log_line


cdef extern from "Python.h":
    enum:
        PY_SSIZE_T_MAX
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t i) nogil   # borrowed, unlike that of cpython.list


cdef enum:
    AT_ONCE = 65_536   # bytes written in one call of a handler, from which on they are sent during the call


# ---- the functions of handler_t, which the loop calls with the GIL


ctypedef reason (*made_f)(void *self, conn_t *c) noexcept nogil
ctypedef reason (*received_f)(
    void *self, conn_t *c, const char *first, size_t before, const char *data, size_t n, size_t rest
) noexcept nogil
ctypedef conn_t *(*next_post_f)(void *self, reason *why) noexcept nogil
ctypedef bint (*lost_f)(void *self, conn_t *c) noexcept nogil


cdef reason call_made(void *self, conn_t *c) noexcept:
    return (<Handling>self).made(c)


cdef reason call_received(
    void *self, conn_t *c, const char *first, size_t before, const char *data, size_t n, size_t rest
) noexcept:
    return (<Handling>self).received(c, first, before, data, n, rest)


cdef conn_t *call_next_post(void *self, reason *why) noexcept:
    return (<Handling>self).next_post(why)


cdef bint call_lost(void *self, conn_t *c) noexcept:
    return (<Handling>self).lost(c)


@cython.final
@cython.no_gc_clear   # the loop calls it until it has released its last connection
cdef class Handling:
    """The handlers of one event loop. ``handler`` is a class, made for each connection, or a function of the lines.

    With ``raw`` a handler gets the bytes as they come. ``max_line`` is the length of the longest line in bytes. A write
    to a connection of which bytes wait to be sent is refused if they would be more than ``write_limit``. 0 means no
    limit for both.
    """

    def __cinit__(self, handler, *, bint raw, max_line, write_limit):
        self.handler = handler
        self.raw = raw
        self.max_line = to_size(max_line, "max_line") or SIZE_MAX
        self.write_limit = to_size(write_limit, "write_limit") or SIZE_MAX
        self.wake = WakePipe()
        self.pid = getpid()
        self.posted = []
        self.taken = []
        self.h.self = <void *>self
        self.h.has_objects = isinstance(handler, type)
        self.h.made = <made_f><void *>call_made
        self.h.received = <received_f><void *>call_received
        self.h.next_post = <next_post_f><void *>call_next_post
        self.h.lost = <lost_f><void *>call_lost

    @property
    def has_objects(self):
        """Whether each connection has a handler object, and must be adopted with a ``Connection`` as its peer."""
        return self.h.has_objects

    cdef void begin(self, loop_t *loop) noexcept:
        """Note the loop, which runs in this thread."""
        self.loop = loop
        self.thread = PyThread_get_thread_ident()

    cdef void end(self) noexcept:
        """Make no further handler objects, and take no posts: a Connection that is kept does not keep descriptors."""
        self.h.has_objects = False
        self.wake.close()

    # ---- posts

    cdef int post(self, Connection conn) except -1:
        """Have the loop look at what is asked of a connection."""
        with cython.critical_section(self):
            if not conn.is_posted:
                self.posted.append(conn)
                conn.is_posted = True
            rio_bool_set(&self.h.posts, True)
        if PyThread_get_thread_ident() != self.thread:
            self.wake.notify()
        return 0

    cdef conn_t *next_post(self, reason *why) noexcept:
        """Append what was written to a connection to the output of the loop. Returns it, or NULL if there is no other.

        What is posted after the first call is left for the next turn.
        """
        cdef Connection conn
        if not self.is_taking:
            with cython.critical_section(self):
                self.taken, self.posted = self.posted, self.taken
                rio_bool_set(&self.h.posts, False)
            self.taken.reverse()
            self.is_taking = True
        while self.taken:
            conn = <Connection>self.taken.pop()
            with cython.critical_section(self):
                conn.is_posted = False
            if conn.c == NULL or conn.c.fd < 0 or (conn.is_over and conn.wish != ABORTED):
                continue
            error = None
            self.too_long = 0
            try:
                self.append_queue(conn)
            except BaseException as raised:
                error = raised
            why[0] = self.leave(conn, error)
            return conn.c
        self.is_taking = False
        return NULL

    # ---- the calls of handlers

    cdef int enter(self, Connection conn) except -1:
        """Begin a call of the handler of a connection, None if it has no object."""
        rio_assert(self.current is None and buffer_held(&self.loop.out) == 0)
        self.too_long = 0
        if conn is not None:
            self.current = conn
            self.append_queue(conn)   # it was written before what this call writes
        return 0

    cdef reason leave(self, Connection conn, object error) noexcept:
        """End a call. Returns OPEN, or why the connection is to be closed."""
        cdef reason why = OPEN
        self.current = None
        if getpid() != self.pid:
            self.leave_child(error)
        if conn is not None and conn.wish != OPEN:
            why = conn.wish
            if why == FINISHED and error is None:
                try:
                    self.append_queue(conn)   # another thread wrote it before it closed the connection
                except BaseException as raised:
                    error = raised
        elif self.too_long:
            why = TOO_LONG
        if error is not None:
            if why != ABORTED:
                why = FAILED
            log_failure("The handler of %s failed", conn, error)
        if why != OPEN and conn is not None:
            conn.is_over = True
            if error is not None:
                conn.error = error
            elif why == TOO_LONG:
                try:
                    conn.error = LineTooLong(self.max_line, self.too_long)
                except BaseException as raised:
                    conn.error = raised
        return why

    cdef void leave_child(self, object error) noexcept:
        """End a process that a handler has forked and that returns from it: the connections are those of the parent."""
        if error is not None:
            log_failure("The handler of %s failed in a forked process", None, error)
        os._exit(0 if error is None else 1)

    cdef reason made(self, conn_t *c) noexcept:
        """Make the handler object of a connection."""
        cdef Connection conn = <Connection>c.peer
        error = None
        try:
            conn.c = c
            if conn_header(c) != NULL and conn_header(c).source.kind != RIO_SOURCE_UNKNOWN:
                conn.source = conn_header(c).source
            self.enter(conn)
            conn.handler = self.handler()
            conn.is_made = True
            method = getattr(conn.handler, "connection_made", None)
            if method is not None:
                method(conn)
        except BaseException as raised:
            error = raised
        return self.leave(conn, error)

    cdef reason received(
        self, conn_t *c, const char *first, size_t before, const char *data, size_t n, size_t rest
    ) noexcept:
        """Call the handler with what was received."""
        cdef Connection conn = <Connection>c.peer if self.h.has_objects else None
        error = None
        try:
            self.enter(conn)
            if self.raw:
                what = PyBytes_FromStringAndSize(data, n)
            else:
                what = self.split(first, before, data, n)
                if n:   # otherwise it is the unterminated line at EOF
                    rio_atomic_add(&self.loop.counts.lines, PyList_GET_SIZE(what))
            if what:
                if conn is None:
                    answer = self.handler(what)
                elif self.raw:
                    answer = conn.handler.data_received(what)
                else:
                    answer = conn.handler.lines_received(what)
                what = None   # the handler alone decides how long the lines live
                if answer is not None:
                    self.append_answer(conn, answer)
            if rest > self.max_line and not self.too_long:
                self.too_long = rest
        except BaseException as raised:
            error = raised
        return self.leave(conn, error)

    cdef list split(self, const char *first, size_t before, const char *data, size_t n):
        """Return a list of the lines in ``before`` bytes without a newline and n more bytes; stop at one too long."""
        cdef list lines = []
        cdef const char *end = data + n
        cdef const char *newline
        cdef size_t size
        cdef bytes line
        while before or data != end:
            newline = <const char *>memchr(data, c'\n', end - data) if data != end else NULL
            size = end - data if newline == NULL else newline + 1 - data
            if before + size > self.max_line:
                self.too_long = before + size
                break
            if before:
                line = PyBytes_FromStringAndSize(NULL, before + size)
                memcpy(PyBytes_AS_STRING(line), first, before)
                if size:
                    memcpy(PyBytes_AS_STRING(line) + before, data, size)
                before = 0
            else:
                line = PyBytes_FromStringAndSize(data, size)
            lines.append(line)
            data += size
        return lines

    # ---- what handlers write

    cdef int append(self, Connection conn, object data) except -1:
        """Append bytes to the output of the loop, behind what other threads have written to the connection."""
        cdef rio_buffer *out = &self.loop.out
        cdef Py_buffer view
        cdef size_t n
        if conn is not None:
            self.append_queue(conn)
        if PyBytes_CheckExact(data):
            n = PyBytes_GET_SIZE(data)
            if buffer_reserve(out, buffer_held(out) + n) < 0:
                raise MemoryError
            buffer_put(out, PyBytes_AS_STRING(data), n)
        else:
            if not PyObject_CheckBuffer(data):
                raise TypeError(f"a handler returns bytes, an iterable of bytes or None, not {type(data).__name__}")
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                n = view.len
                if buffer_reserve(out, buffer_held(out) + n) < 0:
                    raise MemoryError
                buffer_put(out, <const char *>view.buf, n)
            finally:
                PyBuffer_Release(&view)
        if conn is not None:
            rio_atomic_add(&conn.outlet.unsent, n)
        return 0

    cdef int append_answer(self, Connection conn, object answer) except -1:
        """Append what a handler returned, all of it or, if this raises, nothing."""
        cdef Py_ssize_t i = 0
        cdef list items
        cdef size_t before
        if PyBytes_CheckExact(answer) or PyObject_CheckBuffer(answer):
            self.append(conn, answer)
            return 0
        if isinstance(answer, str):
            self.append(conn, answer)   # raises
        # A generator is part of the handler: what it writes itself goes out before what it yields.
        items = <list>answer if PyList_CheckExact(answer) else list(answer)
        if conn is not None:
            self.append_queue(conn)   # not part of the answer
        if self.append_all(conn, items):
            return 0
        before = buffer_held(&self.loop.out)
        try:
            while i < len(items):
                self.append(conn, items[i])
                i += 1
        except BaseException:
            self.loop.out.w = self.loop.out.r + min(before, buffer_held(&self.loop.out))
            raise
        return 0

    cdef bint append_all(self, Connection conn, list items) except -1:
        """Append a list of bytes, for which room is reserved once. Reports whether they were no other objects."""
        cdef rio_buffer *out = &self.loop.out
        cdef Py_ssize_t i, count
        cdef size_t n = 0, size
        cdef char *place
        cdef PyObject *item
        with cython.critical_section(items):
            count = PyList_GET_SIZE(items)
            for i in range(count):
                item = PyList_GET_ITEM(items, i)
                if not PyBytes_CheckExact(<object>item):
                    return False
                size = PyBytes_GET_SIZE(<object>item)
                if size > <size_t>PY_SSIZE_T_MAX - n:
                    raise MemoryError
                n += size
            if n == 0:
                return True
            if buffer_reserve(out, buffer_held(out) + n) < 0:
                raise MemoryError
            place = out.data + out.w
            for i in range(count):
                item = PyList_GET_ITEM(items, i)
                size = PyBytes_GET_SIZE(<object>item)
                memcpy(place, PyBytes_AS_STRING(<object>item), size)
                place += size
            buffer_added(out, n)
        if conn is not None:
            rio_atomic_add(&conn.outlet.unsent, n)
        return True

    cdef int append_queue(self, Connection conn) except -1:
        """Append what was written to a connection outside of the calls of its handler. It counts as written already."""
        cdef list queue
        if conn.queue is None:
            return 0
        with cython.critical_section(conn):
            queue, conn.queue = conn.queue, None
        if queue is not None:
            for data in queue:
                self.append(None, data)
        return 0

    cdef bint lost(self, conn_t *c) noexcept:
        """Tell the handler of a connection that it has ended, once; return False if there is no memory to do so."""
        cdef Connection conn = <Connection>c.peer
        outlet_lock(&conn.outlet)
        conn.c = NULL
        rio_flag_put(&conn.outlet.lock, RIO_FREE)
        with cython.critical_section(conn):
            conn.is_over = True
            conn.queue = None
            sock, conn.sock = conn.sock, None
        method = cause = None
        try:
            if sock is not None:
                sock.close()
            if conn.is_made:
                cause = conn.error if conn.error is not None else end_reason(<reason>c.why, c.err)
                method = getattr(conn.handler, "connection_lost", None)
        except MemoryError:
            return False
        except BaseException as raised:
            log_failure("The handler of %s failed when the connection was lost", conn, raised)
        conn.is_made = False
        conn.handler = None
        conn.error = None   # its traceback refers to the handler
        try:
            if method is not None:
                method(cause)
        except BaseException as raised:
            log_failure("The handler of %s failed when the connection was lost", conn, raised)
        if getpid() != self.pid:
            self.leave_child(None)
        return True


cdef object end_reason(reason why, int err):
    """Return the exception for which a connection has ended, or None after an orderly end."""
    if why == BROKEN:
        return os_error(err)
    if why == IDLE:
        return TimeoutError("the connection made no progress within idle_timeout")
    if why == CUT_OFF:
        return TimeoutError("the server has stopped, and drain_timeout is over")
    if why == ABORTED:
        return ConnectionAbortedError(ECONNABORTED, "the connection was aborted by abort()")
    return None


cdef void log_failure(str text, Connection conn, object error) noexcept:
    """Log an exception of a handler with its traceback; raise nothing."""
    try:
        name = "a connection" if conn is None else conn.name
        log_line(logging.ERROR, text, name, error=error, event="handler failed", peer=name)
    except BaseException:
        pass


@cython.final
cdef class Connection:
    """A connection of a ``LineServer``, which a handler gets in ``connection_made()``.

    All methods may be called from any thread.
    """

    def __cinit__(self, Accepted accepted not None, Handling handling not None):
        self.handling = handling
        rio_source_of(&accepted.address, &self.source)
        if self.source.kind == RIO_SOURCE_UNIX:
            self.path = path_of(accepted.fd)

    def __init__(self, *_):
        pass

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}{' over' if self.is_over else ''}>"

    @property
    def name(self):
        """The peer's name in the log."""
        return source_name(<bytes>(<char *>&self.source)[:sizeof(rio_source)])

    @property
    def peer(self):
        """The address of the peer, ``(host, port)``; of a unix socket the path that the server listens on.

        With the PROXY protocol it is the address in the connection's header, if there is one.
        """
        if self.source.kind == RIO_SOURCE_UNIX:
            return self.path
        host, _, port = self.name.strip("()").rpartition(", ")
        return (host, int(port)) if host else None

    def take_source(self, source):
        """Do nothing: the address in the PROXY header was taken when the handler was made."""

    cdef bint in_its_call(self) noexcept:
        """Report whether this is called by the connection's own handler, in the thread of the loop."""
        return self.handling.current is self and PyThread_get_thread_ident() == self.handling.thread

    def write(self, data):
        """Write bytes to the peer, and return their number. Does not block.

        In a call of the connection's own handler they are sent before what the call returns, and otherwise as soon as
        the peer takes them; in any case in the order of the calls. Raises ``ConnectionError`` after the end of the
        connection, and after ``close()`` outside of such a call; ``BlockingIOError``, and nothing is written, if the
        peer has not yet taken what was written before and it would be more than ``write_limit`` with this;
        ``TypeError`` if ``data`` is not bytes-like.
        """
        cdef Handling handling = self.handling
        cdef size_t n
        if not PyBytes_CheckExact(data):
            if not PyObject_CheckBuffer(data):
                raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
            with memoryview(data) as view:
                data = view.tobytes()
        n = PyBytes_GET_SIZE(data)
        if self.in_its_call():
            self.must_be_open()
            if n == 0:
                return 0
            if buffer_held(&handling.loop.out) + n > AT_ONCE or not self.fits(n):
                conn_send_early(handling.loop, self.c)
            self.must_fit(n)
            handling.append(self, data)
            return n
        with cython.critical_section(self):
            self.must_be_open()
            if self.wish != OPEN:
                raise ConnectionError("the connection has been closed")
            if n == 0:
                return 0
            self.must_fit(n)
            if self.queue is None:
                self.queue = []
            self.queue.append(data)
            rio_atomic_add(&self.outlet.unsent, n)
        handling.post(self)
        return n

    cdef int must_be_open(self) except -1:
        if self.is_over:
            raise ConnectionError("the connection has ended")
        return 0

    cdef bint fits(self, size_t n) noexcept:
        """Report whether n more bytes may wait to be sent."""
        cdef uint64_t unsent = rio_atomic_load(&self.outlet.unsent)
        return unsent == 0 or unsent + n <= self.handling.write_limit

    cdef int must_fit(self, size_t n) except -1:
        if not self.fits(n):
            unsent = rio_atomic_load(&self.outlet.unsent)
            raise BlockingIOError(
                EAGAIN, f"{unsent} bytes wait for the peer, and with {n} more they exceed write_limit; try again later"
            )
        return 0

    def close(self):
        """Close the connection when what was written, and what the current call returns, is sent; do not wait for it.

        No further input is handled. The sending side is closed, and what the peer still sends is discarded until it
        closes its side, for at most ``drain_timeout`` seconds. Closing again does nothing.
        """
        self.ask(FINISHED)

    def abort(self):
        """Reset the connection at once; what is not sent is lost."""
        self.ask(ABORTED)

    cdef int ask(self, reason wish) except -1:
        with cython.critical_section(self):
            if self.wish == wish or self.wish == ABORTED or (self.is_over and self.c == NULL):
                return 0
            self.wish = wish
        if not self.in_its_call():
            self.handling.post(self)
        return 0

    def get_extra_info(self, str name not None, default=None):
        """Return the ``"socket"`` of the connection, its ``"sockname"`` or its ``"peername"``.

        For anything else it is ``default``, and after the end of the connection for all but ``"peername"``.

        The socket is for options and addresses: reading or writing through it takes bytes of the connection's. It is a
        duplicate, which is closed with the connection.
        """
        cdef int fd = -1
        cdef bint is_late
        if name == "peername":
            return self.peer
        if name not in ("socket", "sockname"):
            return default
        with cython.critical_section(self):
            if self.sock is None:
                outlet_lock(&self.outlet)   # otherwise the descriptor could be closed and another's between the two
                if self.c != NULL and self.c.fd >= 0:
                    fd = fcntl(self.c.fd, F_DUPFD_CLOEXEC, 0)
                rio_flag_put(&self.outlet.lock, RIO_FREE)
                if fd < 0:
                    return default
                try:
                    sock = socket(fileno=fd)
                except BaseException:
                    close(fd)
                    raise
                outlet_lock(&self.outlet)
                is_late = self.c == NULL   # the connection has ended since, and would not close this socket
                if not is_late:
                    self.sock = sock
                rio_flag_put(&self.outlet.lock, RIO_FREE)
                if is_late:
                    sock.close()
                    return default
            sock = self.sock
        return sock if name == "socket" else sock.getsockname()


cdef object path_of(int fd):
    """Return the path that a unix socket is bound to: that of the listening socket it was accepted from."""
    sock = socket(fileno=fd)
    try:
        name = sock.getsockname()
    finally:
        sock.detach()
    return os.fsdecode(name) if isinstance(name, bytes) else name

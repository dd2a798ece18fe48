"""The connection that a handler of a LineServer gets, and where everything goes that is written to it.

What a handler writes in a call of its own is appended to one buffer, which the loop sends when the call has returned.
Everything else (a write to another connection, a call of another thread) is a post: it is kept in the ``Connection``,
and the loop does it at the end of its turn, for which it is woken.
"""

import os
from socket import socket

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_CheckExact, PyList_GET_SIZE
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memcpy

from rioecho._core.buffer cimport (
    buffer_added,
    buffer_drop_last,
    buffer_held,
    buffer_put,
    buffer_reserve,
    buffer_room,
    rio_buffer,
)
from rioecho._core.convert cimport os_error, to_size
from rioecho._core.forks cimport generation
from rioecho._core.posix cimport (
    RIO_SOURCE_UNIX,
    F_DUPFD_CLOEXEC,
    close,
    fcntl,
    rio_atomic_add,
    rio_atomic_load,
    rio_bool_get,
    rio_bool_set,
    rio_source,
    rio_source_of,
)
from rioecho._server.accepted cimport Accepted
from rioecho._server.handled cimport conn_send_early
from rioecho._server.loop cimport ABORTED, FINISHED, OPEN, conn_t, loop_t, outlet_lock, outlet_unlock, reason
from rioecho._server.notify cimport WakePipe
from rioecho._server.accepted import source_name


cdef extern from "Python.h":
    enum:
        PY_SSIZE_T_MAX
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t i) nogil   # borrowed, unlike that of cpython.list


cdef enum:
    AT_ONCE = 65_536   # bytes written in one call of a handler, from which on they are sent during the call


cdef bytes bytes_of(object data):
    """Return a copy of a bytes-like object that a handler returned."""
    cdef Py_buffer view
    if not PyObject_CheckBuffer(data):
        raise TypeError(f"a handler returns bytes, an iterable of bytes or None, not {type(data).__name__}")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return PyBytes_FromStringAndSize(<const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef size_t size_from(list items, Py_ssize_t first) noexcept:
    """Return the size of the bytes objects from the first one on, at most PY_SSIZE_T_MAX."""
    cdef size_t n = 0
    cdef PyObject *item
    for i in range(first, PyList_GET_SIZE(items)):
        item = PyList_GET_ITEM(items, i)
        if PyBytes_CheckExact(<object>item):
            n = min(n + <size_t>PyBytes_GET_SIZE(<object>item), <size_t>PY_SSIZE_T_MAX)   # neither is larger
    return n


@cython.no_gc_clear   # as its subclass
cdef class Output:
    """What the connections of one event loop need of it: the output buffer, and the list of posts.

    A write to a connection of which bytes wait to be sent is refused if they would be more than ``write_limit``; 0
    means no limit. A forked child has a copy of everything, and sends nothing.
    """

    def __cinit__(self, *_, write_limit, **__):
        self.write_limit = to_size(write_limit, "write_limit") or SIZE_MAX
        self.wake = WakePipe()
        self.generation = generation
        self.posted = []

    cdef bint in_child(self) noexcept:
        """Report whether this process was forked from the one that serves."""
        return generation != self.generation

    cdef void send_early(self, conn_t *c) noexcept:
        """Send what the handler that is being called has written so far, unless this is a child that it has forked."""
        if not self.in_child():
            conn_send_early(self.loop, c)

    cdef void begin(self, loop_t *loop) noexcept:
        """Note the loop, which runs in this thread."""
        self.loop = loop
        self.thread = PyThread_get_thread_ident()

    cdef void end(self) noexcept:
        """Make no further handler objects, and take no posts: a Connection that is kept does not keep descriptors."""
        self.h.has_objects = False
        self.wake.close()

    cdef int enlist(self, Connection conn) except -1:
        """Put a connection in the list of posts. The caller is in a critical section of both, changes what is asked of
        the connection behind this call, which may raise MemoryError, and then calls ``tell()``.
        """
        if not conn.is_posted:
            self.posted.append(conn)
            conn.is_posted = True
        return 0

    cdef void tell(self) noexcept:
        """Have the loop look at the list of posts."""
        cdef bint was_told
        with cython.critical_section(self):
            was_told = rio_bool_get(&self.h.posts)   # and looks before it waits again
            rio_bool_set(&self.h.posts, True)
        # A forked child has no loop, and the pipe is its parent's.
        if not was_told and PyThread_get_thread_ident() != self.thread and not self.in_child():
            self.wake.notify()

    cdef int append(self, Connection conn, object data) except -1:
        """Append bytes to the output of the loop, behind what other threads have written to the connection."""
        cdef rio_buffer *out = &self.loop.out
        cdef size_t n
        if not PyBytes_CheckExact(data):
            data = bytes_of(data)
        if conn is not None:
            self.append_queue(conn)
        n = PyBytes_GET_SIZE(data)
        if buffer_reserve(out, buffer_held(out) + n) < 0:
            raise MemoryError
        buffer_put(out, PyBytes_AS_STRING(data), n)
        if conn is not None:
            rio_atomic_add(&conn.outlet.unsent, n)
        return 0

    cdef int append_answer(self, Connection conn, object answer) except -1:
        """Append what a handler returned, all of it or, if this raises, nothing. The handler has no object if None."""
        cdef list items
        if PyBytes_CheckExact(answer) or PyObject_CheckBuffer(answer) or isinstance(answer, str):
            return self.append(conn, answer)
        # A generator is part of the handler: what it writes itself goes out before what it yields.
        items = <list>answer if PyList_CheckExact(answer) else list(answer)
        if not self.append_all(conn, items):
            self.append_all(conn, [bytes_of(item) for item in items])
        return 0

    cdef bint append_all(self, Connection conn, list items) except -1:
        """Append a list of bytes, all or none of them. Reports whether they were no other objects."""
        cdef rio_buffer *out = &self.loop.out
        cdef Py_ssize_t i
        cdef size_t before, room, size, n = 0   # n: of the bytes in the room
        cdef PyObject *item
        if conn is not None:
            self.append_queue(conn)
        before = buffer_held(out)
        room = buffer_room(out)
        with cython.critical_section(items):
            for i in range(PyList_GET_SIZE(items)):
                item = PyList_GET_ITEM(items, i)
                if not PyBytes_CheckExact(<object>item):
                    buffer_drop_last(out, buffer_held(out) - before)
                    return False
                size = PyBytes_GET_SIZE(<object>item)
                if size > room - n:
                    buffer_added(out, n)
                    n = 0
                    if buffer_reserve(out, buffer_held(out) + size_from(items, i)) < 0:
                        buffer_drop_last(out, buffer_held(out) - before)
                        raise MemoryError
                    room = buffer_room(out)
                if size:   # otherwise there may be no memory yet
                    memcpy(out.data + out.w + n, PyBytes_AS_STRING(<object>item), size)
                    n += size
            buffer_added(out, n)
        if conn is not None:
            rio_atomic_add(&conn.outlet.unsent, buffer_held(out) - before)
        return True

    cdef int append_queue(self, Connection conn) except -1:
        """Append what was written to a connection outside of the calls of its handler. It counts as written already."""
        cdef list queue
        if conn.queue is None:
            return 0
        with cython.critical_section(conn):
            queue, conn.queue = conn.queue, None
        if queue is not None:
            self.append_all(None, queue)
        return 0


@cython.final
cdef class Connection:
    """A connection of a ``LineServer``, which a handler gets in ``connection_made()``.

    All methods may be called from any thread.
    """

    def __cinit__(self, Accepted accepted not None, Output output not None):
        self.output = output
        rio_source_of(&accepted.address, &self.source)
        if self.source.kind == RIO_SOURCE_UNIX:
            self.path = path_of(accepted.fd)

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
        return self.output.current is self and PyThread_get_thread_ident() == self.output.thread

    def write(self, data):
        """Write bytes to the peer, and return their number. Does not block.

        In a call of the connection's own handler they are sent before what the call returns, and otherwise as soon as
        the peer takes them; in any case in the order of the calls. Raises ``ConnectionError`` after the end of the
        connection, after ``abort()``, and after ``close()`` outside of such a call; ``BlockingIOError``, and nothing is
        written, if the peer has not yet taken what was written before and it would be more than ``write_limit`` with
        this; ``TypeError`` if ``data`` is not bytes-like.
        """
        cdef Output output = self.output
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
            if buffer_held(&output.loop.out) + n > AT_ONCE or not self.fits(n):
                output.send_early(self.c)
            self.must_fit(n)
            output.append(self, data)
            return n
        with cython.critical_section(self, output):
            self.must_be_open()
            if self.wish != OPEN:
                raise ConnectionError("the connection has been closed")
            if n == 0:
                return 0
            self.must_fit(n)
            output.enlist(self)
            if self.queue is None:
                self.queue = []
            self.queue.append(data)
            rio_atomic_add(&self.outlet.unsent, n)
        output.tell()
        return n

    cdef int must_be_open(self) except -1:
        if self.is_over:
            raise ConnectionError("the connection has ended")
        if self.wish == ABORTED:
            raise ConnectionAbortedError("the connection has been aborted")   # without an errno: see Handling.leave()
        return 0

    cdef bint fits(self, size_t n) noexcept:
        """Report whether n more bytes may wait to be sent."""
        cdef uint64_t unsent = rio_atomic_load(&self.outlet.unsent)
        return unsent == 0 or unsent + n <= self.output.write_limit

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
        """Reset the connection at once. What is not sent is lost, what the current call returns included."""
        self.ask(ABORTED)

    cdef int ask(self, reason wish) except -1:
        cdef Output output = self.output
        cdef bint is_post = not self.in_its_call()
        with cython.critical_section(self, output):
            if self.wish == wish or self.wish == ABORTED or (self.is_over and self.c == NULL):
                return 0
            if is_post:
                output.enlist(self)
            self.wish = wish
        if is_post:
            output.tell()
        return 0

    def get_extra_info(self, str name not None, default=None):
        """Return the ``"socket"`` of the connection, its ``"sockname"`` or its ``"peername"``.

        For anything else it is ``default``, and after the end of the connection for all but ``"peername"``.

        The socket is for options and addresses: reading or writing through it takes bytes of the connection's. It is a
        duplicate, which is closed with the connection. Raises ``OSError`` if no descriptor is left for it.
        """
        if name == "peername":
            return self.peer
        if name not in ("socket", "sockname"):
            return default
        with cython.critical_section(self):
            sock = self.sock
            if sock is None:
                sock = self.duplicate()
        if sock is None:
            return default
        return sock if name == "socket" else sock.getsockname()

    cdef object duplicate(self):
        """Make the socket of get_extra_info(). Returns None if the connection has ended."""
        cdef int fd = -1, err = 0
        if not outlet_lock(&self.outlet):
            return None
        if self.c != NULL and self.c.fd >= 0:
            fd = fcntl(self.c.fd, F_DUPFD_CLOEXEC, 0)
            err = errno if fd < 0 else 0
        outlet_unlock(&self.outlet)
        if err:
            raise os_error(err)
        if fd < 0:
            return None
        try:
            sock = socket(fileno=fd)
        except BaseException:
            close(fd)
            raise
        # Python code ran since: another thread may have made one, or the connection have ended, which would not close
        # this one. What is under the lock runs no Python code, and frees no object.
        kept = None
        if outlet_lock(&self.outlet) and self.c != NULL:
            if self.sock is None:
                self.sock = sock
            kept = self.sock
        outlet_unlock(&self.outlet)
        if kept is not sock:
            sock.close()
        return kept


cdef object path_of(int fd):
    """Return the path that a unix socket is bound to: that of the listening socket it was accepted from."""
    sock = socket(fileno=fd)
    try:
        name = sock.getsockname()
    finally:
        sock.detach()
    return os.fsdecode(name) if isinstance(name, bytes) else name

"""How an event loop calls the handlers of a LineServer.

The loop owns its connections; no other thread touches them. It calls a handler with the GIL, through the functions of
``handler_t``. What handlers write is the business of the ``Output`` (lineconnection.pyx).
"""

import logging
import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.list cimport PyList_GET_SIZE
from cpython.ref cimport Py_DECREF, PyObject
from libc.errno cimport ECONNABORTED
from libc.stdint cimport SIZE_MAX
from libc.string cimport memchr, memcpy

from rioecho._core.buffer cimport buffer_held
from rioecho._core.convert cimport os_error, to_size
from rioecho._core.posix cimport (
    RIO_SOURCE_UNKNOWN,
    rio_assert,
    rio_atomic_add,
    rio_bool_set,
    rio_bytes_new,
    rio_list_taken,
    rio_source,
    rio_source_of_peer,
)
from rioecho._server.connection cimport conn_header
from rioecho._server.handled cimport handled_steps
from rioecho._server.lineconnection cimport Connection, Output
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
    outlet_lock,
    outlet_unlock,
    reason,
)
from rioecho.errors import LineTooLong
from rioecho._server.accepted import source_name
from rioecho._server.engine import log_line


cdef extern from "Python.h":
    PyObject *new_list "PyList_New"(Py_ssize_t n) noexcept   # NULL, with an exception set, if there is no memory
    void PyList_SET_ITEM(list items, Py_ssize_t i, PyObject *item) noexcept   # takes the reference


cdef enum:
    LINES_AT_ONCE = 64   # number of lines that are made before they are put in a list


cdef inline size_t line_size(const char *data, const char *end) noexcept nogil:
    """Return the size of the line at ``data`` with its newline, or of what is there of it."""
    cdef const char *newline = <const char *>memchr(data, c'\n', end - data) if data != end else NULL
    return (newline + 1 if newline != NULL else end) - data


cdef void release(PyObject **items, Py_ssize_t n) noexcept:
    """Give up the references to n objects."""
    for i in range(n):
        Py_DECREF(<object>items[i])


cdef list list_of(PyObject **items, Py_ssize_t n):
    """Return a list of n objects. The references to them are given up, whether there is memory for the list or not."""
    cdef PyObject *made = new_list(n)
    if made == NULL:
        release(items, n)
    else:
        for i in range(n):
            PyList_SET_ITEM(<list>made, i, items[i])
    return rio_list_taken(made)


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
cdef class Handling(Output):
    """The handlers of one event loop. ``handler`` is a class, made for each connection, or a function of the lines.

    With ``raw`` a handler gets the bytes as they come. ``max_line`` is the length of the longest line in bytes; 0 means
    no limit. ``write_limit`` is that of ``Output``.
    """

    def __cinit__(self, handler, *, bint raw, max_line, write_limit):
        self.handler = handler
        self.raw = raw
        self.max_line = to_size(max_line, "max_line") or SIZE_MAX
        self.taken = []
        self.h.self = <void *>self
        self.h.has_objects = isinstance(handler, type)
        self.h.made = <made_f><void *>call_made
        self.h.received = <received_f><void *>call_received
        self.h.next_post = <next_post_f><void *>call_next_post
        self.h.lost = <lost_f><void *>call_lost
        handled_steps(&self.h)

    @property
    def has_objects(self):
        """Whether each connection has a handler object, and must be adopted with a ``Connection`` as its peer."""
        return self.h.has_objects

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
            why[0] = self.leave(conn.c, conn, error)
            return conn.c
        self.is_taking = False
        return NULL

    # ---- the calls of handlers

    cdef bint enter(self, Connection conn) except -1:
        """Begin a call of the handler of a connection, None if it has no object. Call ``leave()`` in any case.

        Returns False if the connection is to be closed, which another handler or thread has asked for: its own handler
        gets no further input.
        """
        rio_assert(self.current is None and buffer_held(&self.loop.out) == 0)
        self.too_long = 0
        if conn is not None:
            self.current = conn
            if conn.queue is not None:
                self.append_queue(conn)   # it was written before what this call writes
            return conn.wish == OPEN
        return True

    cdef reason leave(self, conn_t *c, Connection conn, object error) noexcept:
        """End a call. Returns OPEN, or why the connection is to be closed."""
        cdef reason why = OPEN
        self.current = None
        if self.in_child():
            leave_child(c, error)
        if conn is not None and conn.wish != OPEN:
            why = conn.wish
            if why == FINISHED and error is None:
                try:
                    self.append_queue(conn)   # another thread wrote it before it closed the connection
                except BaseException as raised:
                    error = raised
        elif self.too_long:
            why = TOO_LONG
        if why == ABORTED and type(error) is ConnectionAbortedError and error.errno is None:
            error = None   # of a write() after the abort, which another thread may have asked for
        if error is not None:
            if why != ABORTED:
                why = FAILED
            log_failure("The handler of %s failed", peer_name(c), error)
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
        return self.leave(c, conn, error)

    cdef reason received(
        self, conn_t *c, const char *first, size_t before, const char *data, size_t n, size_t rest
    ) noexcept:
        """Call the handler with what was received."""
        cdef Connection conn = <Connection>c.peer if self.h.has_objects else None
        error = None
        try:
            if not self.enter(conn):
                what = None
            elif self.raw:
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
        return self.leave(c, conn, error)

    cdef list split(self, const char *first, size_t before, const char *data, size_t n):
        """Return a list of the lines in ``before`` bytes without a newline and n more bytes; stop at one too long."""
        cdef list lines = None
        cdef const char *end = data + n
        cdef PyObject *made[LINES_AT_ONCE]
        cdef Py_ssize_t count
        cdef size_t size
        cdef bytes line
        if before:
            size = line_size(data, end)
            if before + size > self.max_line:
                self.too_long = before + size
                return []
            line = PyBytes_FromStringAndSize(NULL, before + size)
            memcpy(PyBytes_AS_STRING(line), first, before)
            if size:
                memcpy(PyBytes_AS_STRING(line) + before, data, size)
            lines = [line]
            data += size
        while data != end:
            count = 0
            while count < LINES_AT_ONCE and data != end:
                size = line_size(data, end)
                if size > self.max_line:
                    self.too_long = size
                    end = data
                    break
                made[count] = rio_bytes_new(data, size)
                if made[count] == NULL:
                    release(made, count)
                    return rio_list_taken(NULL)
                data += size
                count += 1
            if lines is not None:
                lines.extend(list_of(made, count))
            elif data == end:
                return list_of(made, count)   # of the right size at once, and not grown line by line
            else:
                lines = list_of(made, count)
        return [] if lines is None else lines

    cdef bint lost(self, conn_t *c) noexcept:
        """Tell the handler of a connection that it has ended, once; return False if there is no memory to do so."""
        cdef Connection conn = <Connection>c.peer
        outlet_lock(&conn.outlet)
        conn.c = NULL
        outlet_unlock(&conn.outlet)
        with cython.critical_section(conn):
            conn.is_over = True
            conn.queue = None
            sock, conn.sock = conn.sock, None
        method = cause = None
        try:
            if sock is not None:
                sock.close()
        except BaseException as raised:   # somebody has closed its descriptor
            log_failure("The socket of %s cannot be closed", peer_name(c), raised)
        try:
            if conn.is_made:
                cause = conn.error if conn.error is not None else end_reason(<reason>c.why, c.err)
                method = getattr(conn.handler, "connection_lost", None)
        except MemoryError:
            return False
        except BaseException as raised:
            log_failure("The handler of %s failed when the connection was lost", peer_name(c), raised)
        conn.is_made = False
        conn.handler = None
        conn.error = None   # its traceback refers to the handler
        try:
            if method is not None:
                method(cause)
        except BaseException as raised:
            log_failure("The handler of %s failed when the connection was lost", peer_name(c), raised)
        if self.in_child():
            leave_child(c, None)
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


cdef void leave_child(conn_t *c, object error) noexcept:
    """End a process that a handler has forked and that returns from it: the connections are those of the parent."""
    if error is not None:
        log_failure("The handler of %s failed in a forked process", peer_name(c), error)
    os._exit(0 if error is None else 1)


cdef object peer_name(conn_t *c):
    """Return the name of a connection's peer for the log: that in its PROXY header, if there is one."""
    cdef rio_source source
    try:
        if conn_header(c) != NULL and conn_header(c).source.kind != RIO_SOURCE_UNKNOWN:
            source = conn_header(c).source
        elif c.peer != NULL:
            return (<object>c.peer).name
        else:
            rio_source_of_peer(c.fd, &source)
        if source.kind != RIO_SOURCE_UNKNOWN:
            return source_name(<bytes>(<char *>&source)[:sizeof(source)])
    except BaseException:
        pass
    return "a connection"


cdef void log_failure(str text, object name, object error) noexcept:
    """Log an exception of a handler with its traceback; raise nothing."""
    try:
        log_line(logging.ERROR, text, name, error=error, event="handler failed", peer=name)
    except BaseException:
        pass

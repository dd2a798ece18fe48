"""Writing: the methods of class Rio that take the caller's bytes, and what text files use of them.

The caller of ``put()`` holds ``writing``. How bytes are sent is in _rio/sender.pyx, the output buffer and its lock in
_rio/output.pyx.
"""

import io

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.errno cimport EPIPE, errno

from rioecho._core.buffer cimport buffer_put, buffer_reserve
from rioecho._core.convert cimport os_error, to_size
from rioecho._core.fdio cimport FD_SOCKET
from rioecho._core.posix cimport (
    SHUT_WR,
    rio_assert,
    rio_flag_closed,
    rio_flag_mine,
    rio_flag_take,
    rio_int_new,
    rio_taken,
    sched_yield,
    shutdown,
)
from rioecho._rio.channel cimport AS_FILE, leave_writing
from rioecho._rio.input cimport enter, let_others_in
from rioecho._rio.limits cimport rio_call
from rioecho._rio.output cimport NOTHING
from rioecho._rio.sender cimport Sender


cdef object ZERO = 0


cdef int note_written(object error, size_t n) except -1:
    """Set the error's ``characters_written`` to the number of the caller's bytes that were sent or buffered."""
    try:
        error.characters_written = n
    except (AttributeError, TypeError):
        pass   # an exception raised by a signal handler, whose class allows no attributes
    return 0


cdef int put_each(object file, object items, put_function put) except -1:
    """Write each of the objects; an error gets the number that was accepted of all together."""
    cdef size_t before = 0, taken = 0
    try:
        for item in items:
            before += put(file, item, &taken)
            taken = 0
    except BaseException as error:
        note_written(error, before + taken)
        raise
    return 0


cdef inline size_t to_ahead(object read_ahead) except? 0:
    return 0 if read_ahead is ZERO else to_size(read_ahead, "read_ahead")


cdef object put(object file, object data, size_t *taken):
    return (<Writer>file).put_object(data, taken, 0)


cdef int get_bytes(object data, Py_buffer *view) except -1:
    """Store the memory of a bytes-like object in ``view``. The caller releases it."""
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except BufferError as error:
        raise TypeError(f"a contiguous bytes-like object is required: {error}") from None
    return 0


cdef class Writer(Sender):
    def writen(self, data, *, read_ahead=0, timeout=...):
        """Send the buffered output, then all of ``data`` (CS:APP 10.5.1, ``rio_writen``).

        Returns the length of ``data`` in bytes, after all of it has been passed to the kernel.

        While it has to wait, up to ``read_ahead`` bytes of what comes are read into the input buffer: two peers that
        both send first would else wait for each other. This is for sockets, also those with methods of their own; on
        other descriptors, and while another call reads, ``read_ahead`` has no effect.

        Raises ``TimeoutError`` (``BlockingIOError`` if the timeout is 0), ``BrokenPipeError`` and any other
        ``OSError``. The error's ``characters_written`` is the number of bytes of ``data`` that were sent. The others
        are the caller's: none of them is kept in the buffer, and
        ``rio.writen(data[error.characters_written:])`` continues.
        """
        cdef Py_buffer view
        cdef rio_call call
        cdef size_t n, sent = 0, size = self.out.base
        cdef size_t ahead = to_ahead(read_ahead)
        cdef object length   # created before anything is sent, because allocating an int can fail
        cdef bint joined = False
        get_bytes(data, &view)
        try:
            n = view.len
            length = view.len
            enter(self, &self.writing)
            try:
                self.begin_writing(&call, timeout, ahead)
                if 0 < n <= size and self.has_unsent(&call, NOTHING) and not self.has_unsent(&call, size - n):
                    self.hold_output(&call, <char *>view.buf, n)   # one send for both
                    joined = True
                    self.push(&call, NOTHING)
                else:
                    self.push(&call, NOTHING)
                    self.send_all(&call, <char *>view.buf, n, &sent)
                    self.push(&call, NOTHING)   # OpenSSL may have sent only a part of the last TLS record
                PyErr_CheckSignals()   # here an exception of a handler still gets its `characters_written`
            except BaseException as error:
                if joined:
                    sent = n - self.take_back(n)
                note_written(error, sent)
                raise
            finally:
                leave_writing(self)
        finally:
            PyBuffer_Release(&view)
        return length

    def write(self, data, *, read_ahead=0):
        """Write ``data`` to the output buffer and return its length in bytes.

        The buffer is sent when it is full. If ``data`` is longer than ``bufsize`` bytes, the buffered output and then
        ``data`` are sent at once, without a copy. The time limit is the ``timeout`` of the Rio; ``read_ahead`` is that
        of ``writen()``.

        Raises the errors of ``writen()``. The error's ``characters_written`` is the number of bytes of ``data`` that
        were accepted, sent or buffered; the others are the caller's. An error that a read met while it sent buffered
        output is raised here, once.
        """
        cdef PyObject *length   # as in writen()
        if PyBytes_CheckExact(data):
            length = rio_int_new(PyBytes_GET_SIZE(data))
            if length == NULL:
                PyErr_Clear()   # put_noted() meets the same error
            elif put_at_once(self, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)):
                return rio_taken(length)
            else:
                Py_DECREF(<object>length)
        return self.put_noted(data, read_ahead)

    def writelines(self, lines, /, *, read_ahead=0):
        """Write each of the bytes-like objects in ``lines``, as ``write()`` does. No newline is added.

        It is one call: the timeout is for all objects together, and another write, in another thread or by ``lines``
        itself, gets ``ConcurrentCall``. Only a file of ``rioecho.makefile`` is written to object by object, as the
        standard library's. ``read_ahead`` is that of ``writen()``.

        The error's ``characters_written`` is the total number of bytes accepted, over all objects.
        """
        cdef rio_call call
        cdef size_t before = 0, taken = 0, ahead = to_ahead(read_ahead)
        self.check_open()
        if self.own == AS_FILE and ahead == 0:
            put_each(self, lines, put)
            return
        try:
            items = iter(lines)
            enter(self, &self.writing)
            try:
                self.begin_writing(&call, ..., ahead)
                for item in items:
                    before += self.put_item(&call, item, &taken)
                    taken = 0
            finally:
                leave_writing(self)
                let_others_in(self)
        except BaseException as error:
            note_written(error, before + taken)
            raise

    def write_eof(self, *, timeout=...):
        """Send the buffered output and close the sending side: the peer then reads the end of the input.

        Reading goes on; a later write raises ``BrokenPipeError``. Calling it again has no effect. (shutdown(2) with
        ``SHUT_WR``; an object with methods of its own is asked for its ``shutdown()``.)

        Raises ``io.UnsupportedOperation`` if there are no two sides (a TLS connection, a pipe, a file, a terminal), and
        the errors of ``flush()``: then nothing has been closed.
        """
        cdef rio_call call
        enter(self, &self.writing)
        try:
            if self.can_write and not self.takes_output:
                return
            self.begin_writing(&call, timeout, 0)
            self.check_half_close()
            self.push(&call, NOTHING)
            self.check_owner()
            self.shut()
            self.takes_output = False
        finally:
            leave_writing(self)

    def flush(self, *, read_ahead=0, timeout=...):
        """Send the buffered output. ``read_ahead`` is that of ``writen()``.

        Raises the errors of ``writen()``. After an error the unsent bytes are still in the buffer, and another
        ``flush()`` continues. An error that a read met while it sent buffered output is raised here, once.
        """
        cdef rio_call call
        cdef size_t ahead = to_ahead(read_ahead)
        enter(self, &self.writing)
        try:
            self.start_writing(&call, timeout)
            self.read_ahead(&call, ahead)
            self.raise_kept(&call)
            self.push(&call, NOTHING)
        finally:
            leave_writing(self)

    cdef object put_noted(self, object data, object read_ahead):
        """Do what ``write()`` does. Apart, because a ``try`` costs a call that cannot fail as much as its copy."""
        cdef size_t taken = 0
        try:
            return self.put_object(data, &taken, to_ahead(read_ahead))
        except BaseException as error:
            note_written(error, taken)
            raise

    cdef object put_object(self, object data, size_t *taken, size_t ahead):
        """Write an object's bytes through the buffer and return their number. Counts accepted bytes in ``taken``."""
        cdef rio_call call
        cdef Py_buffer view
        cdef object length   # as in writen()
        self.check_writable()
        get_bytes(data, &view)
        try:
            length = view.len
            enter(self, &self.writing)
            try:
                self.begin_writing(&call, ..., ahead)
                self.put_in(&call, <char *>view.buf, view.len, taken)
            finally:
                leave_writing(self)
            return length
        finally:
            PyBuffer_Release(&view)

    cdef object put_item(self, rio_call *call, object item, size_t *taken):
        """Write one object of a call that has begun; see ``put_object()``."""
        cdef Py_buffer view
        cdef object length
        get_bytes(item, &view)
        try:
            length = view.len
            if not hold_at_once(self, <char *>view.buf, view.len):
                self.raise_kept(call)   # of a read by the iterable
                self.put_in(call, <char *>view.buf, view.len, taken)
            return length
        finally:
            PyBuffer_Release(&view)

    # ---- the output buffer

    cdef int check_writable(self) except -1:
        if not self.takes_output:
            if rio_flag_closed(&self.writing):
                self.refuse(&self.writing)
            if self.can_write:
                raise BrokenPipeError(EPIPE, "write_eof() has closed the sending side of this Rio")
            raise io.UnsupportedOperation("this Rio is not writable: its descriptor is open for reading only")
        return 0

    cdef int begin_writing(self, rio_call *call, object timeout, size_t ahead) except -1:
        self.check_writable()
        self.start_writing(call, timeout)
        self.read_ahead(call, ahead)
        self.raise_kept(call)
        return 0

    cdef int check_half_close(self) except -1:
        """Raise UnsupportedOperation if the source has no sending side that could be closed alone."""
        if self.transport is None:
            if self.f.kind == FD_SOCKET:
                return 0
        # One that is encrypted, as its room for a record tells, would lose what comes too.
        elif self.transport.waits and self.transport.least_room() == 1 and hasattr(self.transport.source, "shutdown"):
            return 0
        raise io.UnsupportedOperation("write_eof: the sending side cannot be closed without the other one")

    cdef int shut(self) except -1:
        if self.transport is not None:
            self.transport.source.shutdown(SHUT_WR)
        elif shutdown(self.f.fd, SHUT_WR) < 0:
            raise os_error(errno)
        return 0

    cdef int put(self, const char *data, size_t n, size_t *taken) except -1:
        """Write n bytes through the buffer in a call of its own, as ``put_in()`` does."""
        cdef rio_call call
        self.begin_writing(&call, ..., 0)
        return self.put_in(&call, data, n, taken)

    cdef int put_in(self, rio_call *call, const char *data, size_t n, size_t *taken) except -1:
        """Write n bytes through the buffer. Counts the bytes that were sent or buffered in ``taken``."""
        cdef size_t size = self.out.base
        if n > size:
            self.push(call, NOTHING)
            self.send_all(call, data, n, taken)
        elif n:
            self.push(call, size - n)
            self.hold_output(call, data, n)
            taken[0] = n
            if self.has_unsent(call, size - 1):
                self.check_owner()
                self.tied_flush()   # the buffer is full: send what can be sent without blocking
        return 0

    cdef int reserve_output(self) except -1:
        """Allocate the output buffer, so that ``keep_rest()`` needs no memory."""
        cdef rio_call call
        self.start(&call, ...)
        self.hold_output(&call, b"", 0)
        return 0

    cdef void keep_rest(self, const char *data, size_t n) noexcept:
        """After a ``put()`` that was sent in part, append n bytes to the buffer, which is empty and allocated."""
        rio_assert(rio_flag_mine(&self.writing))
        rio_assert(not rio_flag_mine(&self.sending))   # or there would have been no put()
        if n == 0:
            return
        while not rio_flag_take(&self.sending):
            with nogil:
                sched_yield()
        buffer_reserve(&self.out, n)   # moves its start to the front; does not allocate
        buffer_put(&self.out, data, n)
        self.unlock(NULL)

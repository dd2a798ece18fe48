"""Writing: the methods of class Rio that take the caller's bytes, how those are sent, and what text files use of them.

The caller of ``put()``, and of everything that sends, holds ``writing``. The output buffer and its lock, and the sends
of a read, are in _rio/output.pyx.
"""

import io

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t

from rioecho._core.buffer cimport buffer_consume, buffer_held, buffer_put, buffer_reserve, buffer_start
from rioecho._core.convert cimport os_error
from rioecho._core.fdio cimport fd_has_position, would_block
from rioecho._core.posix cimport (
    POLLOUT,
    SEEK_CUR,
    lseek,
    rio_assert,
    rio_bool_set,
    rio_flag_mine,
    rio_flag_take,
    sched_yield,
    sigset_t,
)
from rioecho._rio.channel cimport begin_wait, enter, leave_reading, leave_writing, let_others_in, rio_call
from rioecho._rio.lines cimport LineReader
from rioecho._rio.output cimport NOTHING

from rioecho.errors import ConcurrentCall


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


cdef object put(object file, object data, size_t *taken):
    return (<Writer>file).put_object(data, taken)


cdef int get_bytes(object data, Py_buffer *view) except -1:
    """Store the memory of a bytes-like object in ``view``. The caller releases it."""
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except BufferError as error:
        raise TypeError(f"a contiguous bytes-like object is required: {error}") from None
    return 0


cdef class Writer(LineReader):
    def writen(self, data, *, timeout=...):
        """Send the buffered output, then all of ``data`` (CS:APP 10.5.1, ``rio_writen``).

        Returns the length of ``data`` in bytes, after all of it has been passed to the kernel.

        Raises ``TimeoutError`` (``BlockingIOError`` if the timeout is 0), ``BrokenPipeError`` and any other
        ``OSError``. The error's ``characters_written`` is the number of bytes of ``data`` that were sent. The others
        are the caller's: none of them is kept in the buffer, and
        ``rio.writen(data[error.characters_written:])`` continues.
        """
        cdef Py_buffer view
        cdef rio_call call
        cdef size_t n, sent = 0, size = self.out.base
        cdef object length   # created before anything is sent, because allocating an int can fail
        cdef bint joined = False
        get_bytes(data, &view)
        try:
            n = view.len
            length = view.len
            enter(self, &self.writing)
            try:
                self.begin_writing(&call, timeout)
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

    def write(self, data):
        """Write ``data`` to the output buffer and return its length in bytes.

        The buffer is sent when it is full. If ``data`` is longer than ``bufsize`` bytes, the buffered output and then
        ``data`` are sent at once, without a copy. The time limit is the ``timeout`` of the Rio.

        Raises the errors of ``writen()``. The error's ``characters_written`` is the number of bytes of ``data`` that
        were accepted, sent or buffered; the others are the caller's. An error that a read met while it sent buffered
        output is raised here, once.
        """
        cdef size_t taken = 0
        cdef object length   # as in writen()
        try:
            if PyBytes_CheckExact(data):
                length = PyBytes_GET_SIZE(data)
                if put_at_once(self, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)):
                    return length
            return self.put_object(data, &taken)
        except BaseException as error:
            note_written(error, taken)
            raise

    def writelines(self, lines, /):
        """Write each of the bytes-like objects in ``lines``, as ``write()`` does. No newline is added.

        The error's ``characters_written`` is the total number of bytes accepted, over all objects.
        """
        self.check_open()
        put_each(self, lines, put)

    def flush(self, *, timeout=...):
        """Send the buffered output.

        Raises the errors of ``writen()``. After an error the unsent bytes are still in the buffer, and another
        ``flush()`` continues. An error that a read met while it sent buffered output is raised here, once.
        """
        cdef rio_call call
        enter(self, &self.writing)
        try:
            self.start(&call, timeout)
            self.raise_kept(&call)
            self.push(&call, NOTHING)
        finally:
            leave_writing(self)

    cdef object put_object(self, object data, size_t *taken):
        """Write an object's bytes through the buffer and return their number. Counts accepted bytes in ``taken``."""
        cdef Py_buffer view
        cdef object length   # as in writen()
        self.check_writable()
        get_bytes(data, &view)
        try:
            length = view.len
            enter(self, &self.writing)
            try:
                self.put(<char *>view.buf, view.len, taken)
            finally:
                leave_writing(self)
            return length
        finally:
            PyBuffer_Release(&view)

    # ---- the output buffer

    cdef int check_writable(self) except -1:
        if not self.can_write:
            raise io.UnsupportedOperation("this Rio is not writable: its descriptor is open for reading only")
        return 0

    cdef int begin_writing(self, rio_call *call, object timeout) except -1:
        self.check_writable()
        self.start(call, timeout)
        self.raise_kept(call)
        return 0

    cdef int put(self, const char *data, size_t n, size_t *taken) except -1:
        """Write n bytes through the buffer. Counts the bytes that were sent or buffered in ``taken``."""
        cdef rio_call call
        cdef size_t size = self.out.base
        self.begin_writing(&call, ...)
        if n > size:
            self.push(&call, NOTHING)
            self.send_all(&call, data, n, taken)
        elif n:
            self.push(&call, size - n)
            self.hold_output(&call, data, n)
            taken[0] = n
            if self.has_unsent(&call, size - 1):
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

    # ---- sending

    cdef int send(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1:
        """Make one write, and wait if it would block.

        Writes n bytes of the caller's data and adds the number of bytes sent to ``sent``. If ``data`` is NULL, writes
        buffered output instead, provided that there are more than ``keep`` bytes of it.
        """
        cdef sigset_t before
        cdef int err = 0
        cdef short want = POLLOUT
        cdef ssize_t put = 0
        cdef size_t yields = 0
        self.turn(call)
        if self.transport is not None and self.transport.waits:
            return self.send_waiting(call, data, n, keep, sent)
        while not self.lock_at_once(&before):
            self.let_holder_go_on(call, &yields)
            self.turn(call)   # the source may have been closed in the meantime
        try:
            if data != NULL:
                put = self.send_once(call, data, n, &err, &want)
                if put > 0:
                    sent[0] += put
            elif self.owes(keep):
                put = self.send_once(call, buffer_start(&self.out), buffer_held(&self.out), &err, &want)
                if put > 0:
                    buffer_consume(&self.out, put)
        finally:
            self.unlock(&before)
            let_others_in(self)
        if self.transport is not None:
            self.transport.raise_late()
        if put >= 0:
            begin_wait(call)
        elif would_block(err):
            self.wait_for(call, want, tied=False)
        elif err != EINTR:
            raise os_error(err)
        return 0

    cdef int send_waiting(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1:
        """Make one write, as ``send()`` does, to a source that waits itself.

        ``sending`` is not held meanwhile: the reader may be another greenlet of this thread. The caller's data is
        nobody else's, and buffered output is claimed: a read then leaves it alone, and only a writer, which is this
        call, adds to it.
        """
        cdef bint buffered = data == NULL
        cdef bint reset = False
        cdef ssize_t put = -1
        cdef short want = 0
        if buffered:
            self.lock(call, NULL)
            buffered = self.claimed = self.owes(keep)
            data = buffer_start(&self.out)
            n = buffer_held(&self.out)
            self.unlock(NULL)
            if not buffered:
                return 0
        try:
            put = self.transport.send(data, n, self.patience(call), &want)
        except ConnectionResetError:
            reset = True
            raise
        finally:
            if buffered or reset:
                self.unclaim(put if buffered else 0, reset)
        if put >= 0:
            if not buffered:
                sent[0] += put
            self.transport.raise_late()
            begin_wait(call)
        else:
            self.poll_source(call, want, False)
        return 0

    cdef void unclaim(self, ssize_t put, bint reset) noexcept:
        """End a write of claimed output, of which ``put`` bytes were sent."""
        while not rio_flag_take(&self.sending):   # no Python code runs under it while the output is claimed
            with nogil:
                sched_yield()
        if put > 0:
            buffer_consume(&self.out, put)
        self.claimed = False
        self.reset = self.reset or reset
        self.unlock(NULL)

    cdef int send_all(self, rio_call *call, const char *data, size_t n, size_t *sent) except -1:
        """Send all n bytes of the caller's data, while ``out`` is empty. Updates ``sent`` after each write."""
        cdef bint borrows = n > 0 and fd_has_position(&self.f)
        if borrows:
            self.borrow_reading(call)
        try:
            while sent[0] < n:
                self.send(call, data + sent[0], n - sent[0], NOTHING, sent)
        finally:
            if borrows:
                self.return_reading()
        return 0

    cdef int borrow_reading(self, rio_call *call) except -1:
        """Enter the reading side, and move the file's position back to the first byte that has not been read.

        For a file that is open for both: the write goes where the caller has read to, and a later read sees what was
        written. The bytes read ahead are still in the file.
        """
        cdef size_t yields = 0, held
        rio_assert(rio_flag_mine(&self.writing))
        rio_bool_set(&self.lent, True)
        try:
            while not rio_flag_take(&self.reading):
                if rio_flag_mine(&self.reading):
                    raise ConcurrentCall("a call under this one is reading this file, which has one position for both")
                self.let_holder_go_on(call, &yields)
        except BaseException:
            rio_bool_set(&self.lent, False)
            raise
        try:
            held = buffer_held(&self.inp)
            if held:
                self.check_owner()
                if lseek(self.f.fd, -<int64_t>held, SEEK_CUR) < 0:
                    raise os_error(errno)
                buffer_consume(&self.inp, held)
        except BaseException:
            self.return_reading()
            raise
        return 0

    cdef void return_reading(self) noexcept:
        leave_reading(self)
        rio_bool_set(&self.lent, False)

    cdef int push(self, rio_call *call, ssize_t keep) except -1:
        """Send buffered output until at most ``keep`` bytes are left; for NOTHING, until all is sent."""
        while self.has_unsent(call, keep):
            self.send(call, NULL, 0, keep, NULL)
        return 0

"""The awaitable of one call that reads: class Call.

It is a coroutine, so that ``create_task()``, ``gather()``, ``wait_for()`` and ``TaskGroup`` take it. It is written out
in C's slots because a line that is held is then returned without a frame, a future or an exception; a coroutine made by
``async def`` would take twice as long.

An attempt consumes nothing until it succeeds, and the attempt that succeeds is the last thing that a call does. So a
call that is cancelled, at any point, has consumed nothing.
"""

from collections.abc import Coroutine

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from rioecho._rio.fed cimport INTO, MISSING, NOTHING, ask


cdef extern from "Python.h":
    int PyIter_Send(object iterator, object value, PyObject **result) except -1
    int PyErr_WarnFormat(object category, Py_ssize_t stack_level, const char *format, ...) except -1
    int PYGEN_RETURN
    int PYGEN_NEXT

cdef extern from "rioecho/aio/_await.h":
    ctypedef int (*sender)(PyObject *self, PyObject *value, PyObject **result) except -1
    ctypedef int (*asker)(PyObject *self) noexcept
    ctypedef void (*warner)(PyObject *self) noexcept
    void rio_make_awaitable(PyTypeObject *type, sender send, asker dropped, warner warn) noexcept


cdef class Awaited(Fed):
    """What a Call asks of its owner."""

    cdef int begin(self, Call call) except -1:
        """Begin a call, before its first attempt. Raises ``ConcurrentCall`` if another one waits."""
        raise NotImplementedError

    cdef object wait(self, Call call, bint again):
        """Return a future that is done when it is time for the next attempt, or raise why there is none."""
        raise NotImplementedError

    cdef void finish(self, Call call) noexcept:
        """End a call that has waited. Its answer may have been taken: nothing can be raised any more."""
        raise NotImplementedError

    cdef bint asleep(self, Call call) noexcept:
        """Report whether a call waits and was not woken, so that only another task can have sent to it."""
        return False

    cdef int take_spare(self) except -1:
        """Hold the bytes for which there was no memory before, or raise ``MemoryError`` again."""
        raise NotImplementedError

    cdef void read_on(self) noexcept:
        """Read from the transport again if less is held now. The answer of a call has been taken, as in finish()."""
        raise NotImplementedError


@cython.final
@cython.freelist(32)
cdef class Call:
    """A coroutine: one call of a method that reads. Nothing happens before it is awaited."""

    cdef int aim(self, object buffer) except -1:
        """Let the call store its bytes in ``buffer``, whose memory is held until it ends."""
        try:
            PyObject_GetBuffer(buffer, &self.target, PyBUF_WRITABLE)
        except (BufferError, TypeError):
            raise TypeError(
                f"a writable, contiguous bytes-like object is required, not {type(buffer).__name__}"
            ) from None
        ask(&self.asked, INTO, self.target.len)
        self.asked.into = <char *>self.target.buf
        return 0

    def __await__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value, /):
        """Go on, as ``coroutine.send()`` does: return the future to wait for, or raise ``StopIteration``."""
        cdef PyObject *result = NULL
        cdef int how
        if value is not None and self.state == NEW:
            raise TypeError("can't send non-None value to a just-started coroutine")
        how = call_send(self, &result)
        answer = <object>result
        Py_DECREF(answer)
        if how == PYGEN_NEXT:
            return answer
        raise StopIteration(answer)

    def throw(self, kind, value=None, traceback=None, /):
        """Raise an exception at the point where the call waits, as ``coroutine.throw()`` does. It ends the call."""
        error = kind if value is None else value
        if isinstance(error, type) and issubclass(error, BaseException):
            error = error()
        elif not isinstance(error, BaseException) and isinstance(kind, type) and issubclass(kind, BaseException):
            error = kind(error)
        if not isinstance(error, BaseException):
            raise TypeError(f"exceptions must be classes or instances deriving from BaseException, not {kind!r}")
        if self.state == DONE:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.end()
        raise error if traceback is None else error.with_traceback(traceback)

    def close(self):
        """End the call, as ``coroutine.close()`` does."""
        self.end()

    cdef void end(self) noexcept:
        cdef bint waits = self.state == WAITING
        self.state = DONE
        self.waiter = None
        PyBuffer_Release(&self.target)
        if waits:
            self.owner.finish(self)

    # ---- what asyncio and inspect look at

    @property
    def __name__(self):
        return self.name

    @property
    def __qualname__(self):
        return f"{type(self.owner).__name__}.{self.name}"

    @property
    def cr_running(self):
        return False

    @property
    def cr_await(self):
        return self.waiter

    @property
    def cr_frame(self):
        return None

    @property
    def cr_code(self):
        return None

    @property
    def cr_suspended(self):
        return self.state == WAITING

    def __repr__(self):
        return f"<coroutine {self.__qualname__}>"


cdef int dropped(PyObject *self) noexcept:
    """Let go of what a call holds that is no object, and report whether nobody has awaited it.

    It is called before the call is freed: ``self`` has no reference any more.
    """
    if (<Call>self).asked.what == INTO:
        PyBuffer_Release(&(<Call>self).target)
    return (<Call>self).state == NEW and (<Call>self).asked.what != NOTHING


cdef void warn(PyObject *self) noexcept:
    """Issue the warning for a call that nobody has awaited. An error of that is reported as in a destructor."""
    kind = type((<Call>self).owner).__name__
    PyErr_WarnFormat(
        RuntimeWarning, 1, "coroutine '%U.%U' was never awaited", <PyObject *>kind, <PyObject *>(<Call>self).name
    )


cdef int call_send(Call self, PyObject **result) except -1:
    """Go on with a call, as ``am_send`` does: its result is stored, or a future that it waits for."""
    cdef Awaited owner
    if self.state != NEW:
        return go_on(self, result, True)
    owner = self.owner
    self.state = DONE
    owner.begin(self)
    answer = owner.answer(&self.asked)
    if answer is MISSING:
        self.state = WAITING
        return go_on(self, result, False)
    if owner.paused:
        owner.read_on()
    if self.asked.what == INTO:
        PyBuffer_Release(&self.target)
    return give(self, answer, result)


cdef int go_on(Call self, PyObject **result, bint again) except -1:
    """Wait, for the first time or ``again``. A function of its own, so that a held answer does not pay for it."""
    cdef PyObject *future = NULL
    cdef Awaited owner = self.owner
    if self.state == DONE:
        raise RuntimeError("cannot reuse already awaited coroutine")
    if again and owner.asleep(self):
        raise RuntimeError("coroutine is being awaited already")
    try:
        while True:
            if self.waiter is not None:
                if PyIter_Send(self.waiter, None, &future) == PYGEN_NEXT:
                    result[0] = future
                    return PYGEN_NEXT
                Py_DECREF(<object>future)
                if self.state != WAITING:   # a future of another kind has run what ended the call
                    raise RuntimeError("the call was ended while it waited")
                if owner.spare is not None:
                    owner.take_spare()
                answer = owner.answer(&self.asked)
                if answer is not MISSING:
                    break
            self.waiter = owner.wait(self, self.waiter is not None).__await__()
    except BaseException:
        self.end()
        raise
    self.end()
    return give(self, answer, result)


cdef inline int give(Call self, object answer, PyObject **result) except -1:
    if self.iterates and not <bytes>answer:
        raise StopAsyncIteration
    Py_INCREF(answer)
    result[0] = <PyObject *>answer
    return PYGEN_RETURN


cdef int slot_send(PyObject *self, PyObject *value, PyObject **result) except -1:
    return call_send(<Call>self, result)


rio_make_awaitable(<PyTypeObject *>Call, slot_send, dropped, warn)
Coroutine.register(Call)

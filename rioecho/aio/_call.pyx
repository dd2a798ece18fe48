"""The awaitable of one call that reads: class Call.

It is a coroutine, so that ``create_task()``, ``gather()``, ``wait_for()`` and ``TaskGroup`` take it. It is written out
in C's slots because a line that is held is then returned without a frame, a future or an exception; a coroutine made by
``async def`` would take twice as long.

An attempt consumes nothing until it succeeds, and the attempt that succeeds is the last thing that a call does. So a
call that is cancelled, at any point, has consumed nothing.
"""

from collections.abc import Coroutine

cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from rioecho._rio.fed cimport MISSING


cdef extern from "Python.h":
    int PyIter_Send(object iterator, object value, PyObject **result) except -1
    int PyErr_WarnFormat(object category, Py_ssize_t stack_level, const char *format, ...) except -1
    bint PyErr_Occurred() noexcept
    int PYGEN_RETURN
    int PYGEN_NEXT

cdef extern from "rioecho/aio/_await.h":
    ctypedef int (*sender)(PyObject *self, PyObject *value, PyObject **result) except -1
    void rio_make_awaitable(PyTypeObject *type, sender send) noexcept
    void rio_stopped() noexcept


cdef class Awaited(Fed):
    """What a Call asks of its owner."""

    cdef int begin(self, Call call) except -1:
        """Begin a call, before its first attempt. Raises ``ConcurrentCall`` if another one waits."""
        raise NotImplementedError

    cdef object wait(self, Call call, bint again):
        """Return a future that is done when it is time for the next attempt, or raise why there is none."""
        raise NotImplementedError

    cdef void finish(self, Call call) noexcept:
        """End a call that has waited."""


@cython.final
@cython.freelist(32)
cdef class Call:
    """A coroutine: one call of a method that reads. Nothing happens before it is awaited."""

    def __dealloc__(self):
        if self.state == NEW and self.owner is not None and not PyErr_Occurred():
            never_awaited(self)
        rio_stopped()

    def __await__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value, /):
        """Go on, as ``coroutine.send()`` does: return the future to wait for, or raise ``StopIteration``."""
        cdef PyObject *result = NULL
        cdef int how = call_send(self, &result)
        answer = <object>result
        Py_DECREF(answer)
        if how == PYGEN_NEXT:
            return answer
        raise StopIteration(answer)

    def throw(self, kind, value=None, traceback=None, /):
        """Raise an exception at the point where the call waits, as ``coroutine.throw()`` does. It ends the call."""
        self.stop()
        if isinstance(kind, BaseException):
            raise kind
        if value is None:
            value = kind()
        elif not isinstance(value, BaseException):
            value = kind(value)
        raise value.with_traceback(traceback)

    def close(self):
        """End the call, as ``coroutine.close()`` does."""
        self.stop()

    cdef int stop(self) except -1:
        cdef bint waits = self.state == WAITING
        self.state = DONE
        self.waiter = None
        if waits:
            self.owner.finish(self)
        return 0

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


cdef int never_awaited(Call self) except -1:
    name = f"{type(self.owner).__name__}.{self.name}"
    return PyErr_WarnFormat(RuntimeWarning, 1, "coroutine '%U' was never awaited", <PyObject *>name)


cdef int call_send(Call self, PyObject **result) except -1:
    """Go on with a call, as ``am_send`` does: its result is stored, or a future that it waits for."""
    cdef PyObject *future = NULL
    if self.state == NEW:
        self.state = DONE
        self.owner.begin(self)
        answer = self.owner.answer(&self.asked)
        if answer is not MISSING:
            return give(self, answer, result)
        self.waiter = self.owner.wait(self, False).__await__()
        self.state = WAITING
    elif self.state == DONE:
        raise RuntimeError("cannot reuse already awaited coroutine")
    try:
        while True:
            if PyIter_Send(self.waiter, None, &future) == PYGEN_NEXT:
                result[0] = future
                return PYGEN_NEXT
            Py_DECREF(<object>future)
            if self.state != WAITING:   # ended by close() or throw() of somebody else
                raise RuntimeError("the call was ended while it waited")
            answer = self.owner.answer(&self.asked)
            if answer is not MISSING:
                break
            self.waiter = self.owner.wait(self, True).__await__()
    except BaseException:
        self.stop()
        raise
    self.stop()
    return give(self, answer, result)


cdef inline int give(Call self, object answer, PyObject **result) except -1:
    if self.iterates and not answer:
        raise StopAsyncIteration
    Py_INCREF(answer)
    result[0] = <PyObject *>answer
    return PYGEN_RETURN


cdef int slot_send(PyObject *self, PyObject *value, PyObject **result) except -1:
    return call_send(<Call>self, result)


rio_make_awaitable(<PyTypeObject *>Call, slot_send)
Coroutine.register(Call)

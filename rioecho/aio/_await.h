/* What an awaitable written in C needs, and Cython does not have. */

#ifndef RIOECHO_AWAIT_H
#define RIOECHO_AWAIT_H

#include <Python.h>

/* From 3.12 on the interpreter takes the result of an await from a StopIteration, whose creation costs as much as the
 * rest of a call. It drops it at once, so that one instance can be used again, unless somebody has kept it, or has
 * left a trace in it. Its args are empty: they would keep the first value. */
#if PY_VERSION_HEX >= 0x030C0000 && !defined(Py_GIL_DISABLED)
static PyObject *rio_stop_iteration = NULL;

static inline int rio_dropped(PyStopIterationObject *kept)
{
    return kept != NULL && Py_REFCNT(kept) == 1 && kept->traceback == NULL && kept->context == NULL &&
           kept->cause == NULL && kept->notes == NULL && kept->dict == NULL;
}
#endif

/* Raise StopIteration with a value, a reference that is taken over. */
static inline void rio_stop(PyObject *value)
{
    PyObject *error;
#if PY_VERSION_HEX >= 0x030C0000 && !defined(Py_GIL_DISABLED)
    PyObject *before;
    PyStopIterationObject *kept = (PyStopIterationObject *)rio_stop_iteration;
    if (!rio_dropped(kept)) {
        error = PyObject_CallNoArgs(PyExc_StopIteration);
        if (error == NULL) {
            Py_DECREF(value);
            return;
        }
        Py_XSETREF(rio_stop_iteration, error);
        kept = (PyStopIterationObject *)error;
    }
    before = kept->value;
    kept->value = value;
    PyErr_SetRaisedException(Py_NewRef((PyObject *)kept));
    Py_XDECREF(before); /* last: it may run Python code, to which this one is in use */
#else
    error = PyObject_CallOneArg(PyExc_StopIteration, value);
    Py_DECREF(value);
    if (error == NULL)
        return;
    PyErr_SetObject(PyExc_StopIteration, error);
    Py_DECREF(error);
#endif
}

/* Drop the value that rio_stop() has kept. */
static inline void rio_stopped(void)
{
#if PY_VERSION_HEX >= 0x030C0000 && !defined(Py_GIL_DISABLED)
    PyStopIterationObject *kept = (PyStopIterationObject *)rio_stop_iteration;
    if (kept != NULL && Py_REFCNT(kept) == 1)
        Py_CLEAR(kept->value);
#endif
}

/* tp_iternext: like am_send, with a StopIteration in place of the result. */
static inline PyObject *rio_next(PyObject *self)
{
    PyObject *result = NULL;
    PySendResult how = Py_TYPE(self)->tp_as_async->am_send(self, Py_None, &result);
    if (how == PYGEN_NEXT)
        return result;
    if (how == PYGEN_RETURN)
        rio_stop(result);
    return NULL;
}

/* A method __dealloc__ would save and restore the current exception for each call that ends, which costs as much as
 * freeing it; this does so only for one that was never awaited. */
static destructor rio_freed = NULL;             /* the tp_dealloc that Cython has made */
static int (*rio_ended)(PyObject *) = NULL; /* prepares it; reports whether the call was never awaited */
static void (*rio_warn_of)(PyObject *) = NULL;

static void rio_dealloc(PyObject *self)
{
    if (rio_ended(self)) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        Py_SET_REFCNT(self, 1);
        rio_warn_of(self);
        Py_SET_REFCNT(self, 0);
        PyErr_Restore(type, value, traceback);
    }
    rio_stopped();
    rio_freed(self);
}

/* Give a type that Cython has made the slots of a coroutine: it is its own iterator, and returns without an exception
 * where the interpreter asks for that (3.11, and the C code of asyncio). */
static inline void rio_make_awaitable(PyTypeObject *type, int (*send)(PyObject *, PyObject *, PyObject **),
                                      int (*dropped)(PyObject *), void (*warn)(PyObject *))
{
    rio_freed = type->tp_dealloc;
    rio_ended = dropped;
    rio_warn_of = warn;
    type->tp_dealloc = rio_dealloc;
    type->tp_as_async->am_await = PyObject_SelfIter;
    type->tp_as_async->am_send = (sendfunc)send;
    type->tp_iternext = rio_next;
    PyType_Modified(type);
}

#endif

"""The bytes that a StreamReader holds, as subclasses and clients see them: classes Holder and Held."""

from collections.abc import MutableSequence
from functools import partial

from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize

from rioecho._core.buffer cimport buffer_held, buffer_start
from rioecho._rio.input cimport consume, enter, leave_reading
from rioecho.aio._room cimport Lender

cdef tuple MUTATORS = ("append", "insert", "pop", "remove", "reverse")


cdef class Holder(Lender):
    @property
    def _buffer(self):
        """The bytes that are held, as a view that can be changed like a ``bytearray``."""
        cdef Held view = Held.__new__(Held)
        view.owner = self
        return view

    @_buffer.setter
    def _buffer(self, data):
        if isinstance(data, Held) and (<Held>data).owner is self:   # from ``reader._buffer += data``
            return
        before = len(self._buffer)
        self.add(data, True)
        self.drop_first(before)

    cdef int drop_first(self, size_t n) except -1:
        enter(self, &self.reading)
        consume(self, min(n, buffer_held(&self.inp)))
        leave_reading(self)
        return 0

    cdef bytes held(self):
        """Return a copy of the bytes that are held."""
        enter(self, &self.reading)
        try:
            return PyBytes_FromStringAndSize(buffer_start(&self.inp), buffer_held(&self.inp))
        finally:
            leave_reading(self)


cdef class Held:
    """The bytes that a StreamReader holds, as a ``bytearray`` that subclasses and clients may look at and change.

    Removing the first bytes and adding some behind cost what they cost a ``bytearray``; other changes copy all bytes.
    """

    __hash__ = None

    def __len__(self):
        return buffer_held(&self.owner.inp)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyObject_GetBuffer(self.owner.held(), view, flags)   # of a copy, because the bytes may move or be read

    def __repr__(self):
        return f"<{bytearray(self.owner.held())!r} of a StreamReader>"

    def __eq__(self, other):
        return bytearray(self.owner.held()) == other

    def __iter__(self):
        return iter(self.owner.held())

    def __contains__(self, item):
        return item in self.owner.held()

    def __add__(self, other):
        return bytearray(self.owner.held()) + other

    def __radd__(self, other):
        return other + self.owner.held()

    def __getitem__(self, index):
        return bytearray(self.owner.held())[index]

    def __setitem__(self, index, value):
        data = bytearray(self.owner.held())
        data[index] = value
        self.owner._buffer = data

    def __delitem__(self, index):
        cdef Py_ssize_t start, stop, step
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if start == 0 and step == 1:
                self.owner.drop_first(max(stop, 0))
                return
        data = bytearray(self.owner.held())
        del data[index]
        self.owner._buffer = data

    def __iadd__(self, other):
        self.owner.add(other, True)
        return self

    def extend(self, data):
        self.owner.add(data if not isinstance(data, (list, tuple)) else bytes(data), True)

    def clear(self):
        self.owner.drop_first(buffer_held(&self.owner.inp))

    def __getattr__(self, name):
        if name in MUTATORS:
            return partial(change, self, name)
        return getattr(bytearray(self.owner.held()), name)


def change(Held self, name, *args):
    """Call a method of ``bytearray`` that changes it."""
    data = bytearray(self.owner.held())
    result = getattr(data, name)(*args)
    self.owner._buffer = data
    return result


MutableSequence.register(Held)

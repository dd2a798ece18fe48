"""Python's signal handlers: in which thread they run, and which exceptions are theirs.

A handler may raise what a source reports a state with: that of an alarm often raises ``TimeoutError``. It would be
swallowed if it were taken for the source's. What tells them apart are the frames that an exception came through.
"""

import os
import _signal

from libc.stdint cimport uintptr_t

from rioecho._core.posix cimport rio_this_thread, rio_thread_get, rio_thread_set


cdef enum:
    WRAPPERS = 8   # how many functools.partial objects, methods and the like may be around a handler's function


cdef uintptr_t main_thread = 0   # the thread that runs Python's signal handlers; 0 while unknown; atomic


cdef bint runs_handlers(uintptr_t *other_thread) except -1:
    """Report whether this thread runs Python's signal handlers: the main thread of the main interpreter.

    ``other_thread`` is atomic memory of the caller, 0 at first: it remembers a thread that runs none.
    """
    cdef uintptr_t me = rio_this_thread()
    if rio_thread_get(&main_thread) == 0 and rio_thread_get(other_thread) != me:
        find_main_thread()
        if rio_thread_get(&main_thread) == 0:
            rio_thread_set(other_thread, me)
    return rio_thread_get(&main_thread) == me


cdef int find_main_thread() except -1:
    """Record this thread as the one that runs Python's signal handlers, if it is."""
    try:
        _signal.set_wakeup_fd(-2)   # refused, before anything is changed, with an error that tells
    except ValueError:
        pass   # "only works in main thread of the main interpreter"
    except OSError:
        rio_thread_set(&main_thread, rio_this_thread())
    return 0


def _after_fork_in_child():
    rio_thread_set(&main_thread, 0)   # it is now the thread that forked


os.register_at_fork(after_in_child=_after_fork_in_child)


cdef bint is_in(object place, str modules) except -1:
    """Report whether a frame of a traceback is of a module whose name begins with ``modules``."""
    name = place.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.startswith(modules)


cdef bint raised_outside(object error, str modules) except -1:
    """Report whether an exception was raised by Python code outside of the modules whose names begin with ``modules``.

    For modules that call only C code: what that raises has a module's frame as its innermost one, while a handler has
    its own.
    """
    place = error.__traceback__
    if place is None:   # there was no memory for the frame of the module, which cannot happen to a handler's
        return False
    while place.tb_next is not None:
        place = place.tb_next
    return not is_in(place, modules)


cdef bint raised_by_handler(object error, str modules) except -1:
    """Report whether an exception came through a signal handler that is installed now.

    For modules that call code of any kind. ``modules``, a prefix of their names, saves the search where it was C code.
    """
    cdef set codes = None
    place = error.__traceback__
    while place is not None:
        if codes is None and not is_in(place, modules):
            codes = handler_codes()
        if codes is not None and id(place.tb_frame.f_code) in codes:
            return True
        place = place.tb_next
    return False


cdef set handler_codes():
    """Return the identities of the code objects of all signal handlers that are written in Python."""
    cdef set codes = set()
    for number in range(1, _signal.NSIG):
        handler = _signal.getsignal(number)
        if not callable(handler):   # SIG_DFL, SIG_IGN and None
            continue
        for _ in range(WRAPPERS):
            code = getattr(handler, "__code__", None)
            if code is not None:
                codes.add(id(code))
                break
            handler = inside(handler)
    return codes


cdef object inside(object handler):
    """Return what a callable that is no function calls: a bound method, a functools.partial, an object."""
    for name in ("__func__", "func"):
        if hasattr(handler, name):
            return getattr(handler, name)
    return type(handler).__call__

"""How a function of the book is called and how it fails: the TypeErrors that show the right call, a wrapper's exit.

The functions themselves are in the other modules of this folder, in plain Python; a decorator from here adds the rest.
"""

from __future__ import annotations

import functools
import operator
import os
import sys

TYPE_CHECKING = False  # importing typing is slow
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar

    from _typeshed import ReadableBuffer, WriteableBuffer

    # Not a ParamSpec, which cannot express overloads: a wrapper has the signature of the function in all its forms.
    _Function = TypeVar("_Function", bound=Callable[..., Any])

#: Errors of the system and of its input; UnicodeError is a host name or a text that cannot be encoded or decoded.
REFUSED = (OSError, UnicodeError, MemoryError)


def raises(*forms: str) -> Callable[[_Function], _Function]:
    """Return a decorator for a lower-case function, whose errors are exceptions; ``forms`` are its right calls."""
    return lambda function: _checked(function, function.__name__, forms, ())


def exits(*forms: str, refused: tuple[type[Exception], ...] = ()) -> Callable[[_Function], _Function]:
    """Return a decorator for a wrapper, which ends the process on the errors in REFUSED and in ``refused``."""
    return lambda function: _checked(function, function.__name__, forms, (*REFUSED, *refused))


def capitalized(function: _Function, *forms: str, refused: tuple[type[Exception], ...] = ()) -> _Function:
    """Return the wrapper of a lower-case function; ``forms`` are by default those of the function."""
    small = function.__name__
    name = small.capitalize()
    if not forms:
        forms = tuple(form.replace("rio_", "Rio_") for form in function.forms)  # type: ignore[attr-defined]
    inner: _Function = getattr(function, "__wrapped__", function)
    return _checked(inner, name, forms, (*REFUSED, *refused))


def _checked(function: _Function, name: str, forms: tuple[str, ...], refused: tuple[type[Exception], ...]) -> _Function:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (TypeError, AttributeError) as exc:
            if not _of_the_arguments(exc, [*args, *kwargs.values()]):
                raise
            text = str(exc).replace(f"{function.__name__}()", f"{name}()")
            raise TypeError(f"{text}; the call is {' or '.join(forms)}") from None
        except refused as exc:
            fail(f"{name} error: {reason(exc)}")

    functools.update_wrapper(wrapper, function)
    wrapper.__name__ = wrapper.__qualname__ = name
    wrapper.forms = forms  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def _of_the_arguments(exc: TypeError | AttributeError, arguments: list[Any]) -> bool:
    """Report whether wrong arguments caused the error, and not code of the program that ran during the call.

    Such code, a signal handler for example, has frames that are neither of this package nor of the standard library.
    An argument of a wrong type may lack an attribute.
    """
    if isinstance(exc, AttributeError) and not any(exc.obj is argument for argument in arguments):
        return False
    traceback = exc.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if module != "rioecho" and module not in sys.stdlib_module_names:
            return False
        traceback = traceback.tb_next
    return True


def reason(exc: BaseException) -> str:
    """Return the text of an error as C programs print it."""
    return str(getattr(exc, "strerror", None) or exc or type(exc).__name__)


def fail(message: str) -> NoReturn:
    """Print a message to stderr and end the process with status 1."""
    try:
        print(message, file=sys.stderr, flush=True)
    finally:  # even if printing fails
        end_process(1)


def end_process(status: int) -> NoReturn:
    """End the process: in the main thread by SystemExit, which would end only the thread in any other."""
    import threading  # here, to keep the import of rioecho fast

    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    finally:
        if threading.current_thread() is not threading.main_thread():
            os._exit(status)
        raise SystemExit(status)


def count(n: int) -> int:
    """Return a number of bytes as an int; it must not be negative."""
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    return n


def buffer_and_size(buf: Any, n: Any, default: Any = ...) -> tuple[Any, Any]:
    """Return the buffer, or ``...``, and the size of a call in either form: ``(buf, n)`` or ``(n)``."""
    if n is not ...:
        return buf, n
    if buf is ...:
        if default is ...:
            raise TypeError("the number of bytes is missing")
        return ..., default
    try:
        return ..., operator.index(buf)
    except TypeError:
        raise TypeError(f"the number of bytes must be an int, not {type(buf).__name__}") from None


def without_nul(size: int, name: str) -> int:
    """Return the number of characters of a C string of ``size``, which counts the NUL that ends it."""
    size = operator.index(size)
    if size < 2:
        raise ValueError(f"{name} must be 2 or more, not {size}: it counts the NUL that ends the string in C")
    return size - 1


def fill(buf: WriteableBuffer, n: int, read: Callable[[memoryview], int]) -> int:
    """Call ``read`` with the first ``n`` bytes of a writable buffer and return its result.

    The buffer is exported during the call, so that no other thread can resize it, and no longer.
    """
    with memoryview(buf) as whole:
        if whole.readonly:
            raise TypeError(f"a writable buffer is required, such as bytearray(n), not {type(buf).__name__}")
        if whole.nbytes < n:
            raise ValueError(f"the buffer has {whole.nbytes} bytes, fewer than the {n} of the call")
        if n == 0:
            return 0
        with whole.cast("B") as flat, flat[:n] as part:
            return read(part)


def first(data: ReadableBuffer, n: int, write: Callable[[memoryview], int]) -> int:
    """Call ``write`` with the first ``n`` bytes of a buffer and return its result."""
    n = count(n)
    with memoryview(data) as whole:
        if whole.nbytes < n:
            raise ValueError(f"the buffer has {whole.nbytes} bytes, fewer than the {n} of the call")
        if n == 0:
            return write(whole[:0])
        with whole.cast("B") as flat, flat[:n] as part:
            return write(part)

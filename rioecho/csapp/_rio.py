"""The RIO package (CS:APP 10.5): its functions and their wrappers.

Each reading function has two forms. The book's takes a writable buffer, fills it and returns the number of bytes;
Python's takes none and returns the bytes.
"""

from __future__ import annotations

from rioecho.csapp._calls import buffer_and_size, capitalized, count, fill, first, raises, without_nul
from rioecho.csapp._constants import MAXLINE, RIO_BUFSIZE
from rioecho.rio import Rio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import EllipsisType
    from typing import Any, overload

    from _typeshed import FileDescriptorLike, ReadableBuffer, WriteableBuffer


if TYPE_CHECKING:

    @overload
    def rio_readn(fd: FileDescriptorLike, n: int, /) -> bytes: ...
    @overload
    def rio_readn(fd: FileDescriptorLike, *, n: int) -> bytes: ...
    @overload
    def rio_readn(fd: FileDescriptorLike, buf: WriteableBuffer, n: int) -> int: ...


@raises("n = rio_readn(fd, buf, n)", "data = rio_readn(fd, n)")
def rio_readn(fd: FileDescriptorLike, buf: Any = ..., n: Any = ...) -> Any:
    """Read exactly ``n`` bytes from ``fd``, without a buffer: no byte after them is read. Fewer only at EOF.

    ``rio_readn(fd, n)`` returns the bytes; ``rio_readn(fd, buf, n)`` stores them in ``buf``, a writable buffer of at
    least ``n`` bytes, and returns their number.

    Any exception has the bytes that were read before it in its attribute ``partial``; they are also in ``buf`` and
    nowhere else.
    """
    buf, n = buffer_and_size(buf, n)
    n = count(n)
    rio = Rio(fd, bufsize=1)
    try:
        return rio.read(n) if buf is ... else fill(buf, n, rio.readinto)
    except BaseException as exc:
        partial = rio.read_buffered()
        exc.partial = partial  # type: ignore[attr-defined]
        if partial and buf is not ...:
            fill(buf, len(partial), lambda part: _store(part, partial))
        raise


@raises("rio_writen(fd, buf, n)", "rio_writen(fd, data)")
def rio_writen(fd: FileDescriptorLike, data: ReadableBuffer, n: int | EllipsisType = ...) -> int:
    """Write all of ``data``, or its first ``n`` bytes, to ``fd`` and return their number.

    After an error, the exception's ``characters_written`` is the number of bytes written.
    """
    if isinstance(n, type(...)):
        return Rio(fd).writen(data)
    return first(data, n, Rio(fd).writen)


@raises("rio = rio_readinitb(fd)")
def rio_readinitb(fd: FileDescriptorLike) -> Rio:
    """Return a ``Rio`` with the book's buffer of ``RIO_BUFSIZE`` bytes. The caller keeps ownership of ``fd``."""
    return Rio(fd, bufsize=RIO_BUFSIZE)


if TYPE_CHECKING:

    @overload
    def rio_readlineb(rp: Rio, maxlen: int = MAXLINE, /) -> bytes: ...
    @overload
    def rio_readlineb(rp: Rio, *, maxlen: int) -> bytes: ...
    @overload
    def rio_readlineb(rp: Rio, buf: WriteableBuffer, maxlen: int) -> int: ...


@raises("n = rio_readlineb(rio, buf, MAXLINE)", "line = rio_readlineb(rio, MAXLINE), with rio = rio_readinitb(fd)")
def rio_readlineb(rp: Rio, buf: Any = ..., maxlen: Any = ...) -> Any:
    """Read a line, including its newline; an unterminated last line as it is; nothing at EOF.

    ``rio_readlineb(rp, maxlen=MAXLINE)`` returns the line, ``b""`` at EOF. ``rio_readlineb(rp, buf, maxlen)`` stores it
    in ``buf``, a writable buffer of at least ``maxlen`` bytes, and returns its length, 0 at EOF; no NUL is stored.

    ``maxlen`` counts the NUL of the C string, as in the book, so a line has at most ``maxlen - 1`` bytes. A longer line
    is returned in pieces by successive calls; all but the last piece have no newline. An error loses no data, as with
    ``Rio``. Raises ``ValueError`` for ``maxlen < 2``.
    """
    buf, maxlen = buffer_and_size(buf, maxlen, MAXLINE)
    rio = _rio_t(rp)
    most = without_nul(maxlen, "maxlen")
    if buf is ...:
        return rio.readline(most)
    with rio.frame():  # a signal handler that raises before the line is in ``buf`` leaves it in the Rio
        return fill(buf, most + 1, lambda room: _store(room, rio.readline(most)))


if TYPE_CHECKING:

    @overload
    def rio_readnb(rp: Rio, n: int, /) -> bytes: ...
    @overload
    def rio_readnb(rp: Rio, *, n: int) -> bytes: ...
    @overload
    def rio_readnb(rp: Rio, buf: WriteableBuffer, n: int) -> int: ...


@raises("n = rio_readnb(rio, buf, n)", "data = rio_readnb(rio, n), with rio = rio_readinitb(fd)")
def rio_readnb(rp: Rio, buf: Any = ..., n: Any = ...) -> Any:
    """Read exactly ``n`` bytes, fewer only at EOF. An error loses no data, as with ``Rio``.

    ``rio_readnb(rp, n)`` returns the bytes; ``rio_readnb(rp, buf, n)`` stores them in ``buf``, a writable buffer of at
    least ``n`` bytes, and returns their number.
    """
    buf, n = buffer_and_size(buf, n)
    rio = _rio_t(rp)
    n = count(n)
    return rio.read(n) if buf is ... else fill(buf, n, rio.readinto)


def _rio_t(rp: Any) -> Rio:
    if not isinstance(rp, Rio):
        raise TypeError(f"a rio_t is required, not {type(rp).__name__}")
    return rp


def _store(room: memoryview, data: bytes) -> int:
    room[: len(data)] = data
    return len(data)


Rio_readn = capitalized(rio_readn)
Rio_writen = capitalized(rio_writen)
Rio_readinitb = capitalized(rio_readinitb)
Rio_readlineb = capitalized(rio_readlineb)
Rio_readnb = capitalized(rio_readnb)

"""Files, directories, select and standard I/O (CS:APP chapter 10 and 12.2): the wrappers, with Python's arguments."""

# ruff: noqa: N801, N802, the book's names

from __future__ import annotations

import errno
import os
import select
import sys
from stat import S_ISREG

from rioecho.csapp._calls import buffer_and_size, count, exits, fill, first, raises, without_nul
from rioecho.csapp._constants import DEF_MODE, FD_SETSIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Iterator
    from types import EllipsisType
    from typing import Any, Protocol, TypeAlias, TypeVar, overload

    from _typeshed import FileDescriptorLike, ReadableBuffer, WriteableBuffer

    _T = TypeVar("_T")
    _Out = TypeVar("_Out", covariant=True)
    _In = TypeVar("_In", contravariant=True)
    _Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

    class _HasReadline(Protocol[_Out]):
        def readline(self, limit: int, /) -> _Out: ...

    class _HasWrite(Protocol[_In]):
        def write(self, text: _In, /) -> object: ...


# Unix I/O (10.3 to 10.9)


@exits("fd = Open(filename, flags, mode)")
def Open(filename: _Path, flags: int, mode: int = DEF_MODE) -> int:
    """Open a file and return its descriptor, which is close-on-exec. ``mode`` is the permissions of a new file."""
    return os.open(filename, flags, mode)


if TYPE_CHECKING:

    @overload
    def Read(fd: int, n: int, /) -> bytes: ...
    @overload
    def Read(fd: int, *, n: int) -> bytes: ...
    @overload
    def Read(fd: int, buf: WriteableBuffer, n: int) -> int: ...


@exits("data = Read(fd, n)", "n = Read(fd, buf, n)")
def Read(fd: int, buf: Any = ..., n: Any = ...) -> Any:
    """Make one read of at most ``n`` bytes; nothing at EOF.

    ``Read(fd, n)`` returns the bytes; ``Read(fd, buf, n)`` stores them in ``buf``, a writable buffer, and returns their
    number.
    """
    buf, n = buffer_and_size(buf, n)
    if buf is ...:
        return os.read(fd, count(n))
    return fill(buf, count(n), lambda part: os.readv(fd, [part]))


@exits("Write(fd, data)", "Write(fd, buf, n)")
def Write(fd: int, data: ReadableBuffer, n: int | EllipsisType = ...) -> int:
    """Make one write of ``data``, or of its first ``n`` bytes; return the number of bytes written."""
    if isinstance(n, type(...)):
        return os.write(fd, data)
    return first(data, n, lambda part: os.write(fd, part))


@exits("position = Lseek(fd, offset, whence)")
def Lseek(fd: int, offset: int, whence: int) -> int:
    """Set the position of a file and return it. ``whence`` is SEEK_SET, SEEK_CUR or SEEK_END."""
    return os.lseek(fd, offset, whence)


@exits("Dup2(oldfd, newfd)")
def Dup2(oldfd: int, newfd: int) -> int:
    """Make ``newfd`` a copy of ``oldfd``, which programs started by ``Execve`` inherit, and return ``newfd``."""
    return os.dup2(oldfd, newfd)


@exits("stat = Stat(filename)")
def Stat(filename: _Path) -> os.stat_result:
    """Return the metadata of a file, with the attributes ``st_mode``, ``st_size`` and so on."""
    return os.stat(filename)


@exits("stat = Fstat(fd)")
def Fstat(fd: int) -> os.stat_result:
    """Return the metadata of an open file."""
    return os.fstat(fd)


@exits("srcp = Mmap(length, prot, flags, fd, offset)")
def Mmap(length: int, prot: int, flags: int, fd: int, offset: int = 0) -> mmap.mmap:
    """Map ``length`` bytes of a file, from ``offset``; ``Munmap`` ends it. As in C, a length of 0 is an error."""
    import mmap

    if count(length) == 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    try:
        return mmap.mmap(fd, length, flags=flags, prot=prot, offset=offset)
    except ValueError as exc:  # Python's own check: a length or an offset past the end of a regular file
        if S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, str(exc)) from None
        raise


@exits("Munmap(srcp)")
def Munmap(srcp: mmap.mmap) -> None:
    """Remove a mapping of ``Mmap``."""
    srcp.close()


class _Entry:
    """An entry of a directory: ``struct dirent``."""

    __slots__ = ("d_ino", "d_name")

    def __init__(self, name: str, number: int) -> None:
        self.d_name = name
        self.d_ino = number


class _Directory:
    """An open directory: ``DIR``."""

    def __init__(self, name: _Path) -> None:
        name = os.fsdecode(name)
        self._found = os.scandir(name)
        self._entries = self._all(name)

    def _all(self, name: str) -> Iterator[_Entry]:
        for special in (".", ".."):  # scandir() leaves them out
            yield _Entry(special, os.stat(os.path.join(name, special)).st_ino)
        for entry in self._found:
            yield _Entry(entry.name, entry.inode())

    def next(self) -> _Entry | None:
        return next(self._entries, None)

    def close(self) -> None:
        self._found.close()


@exits("dirp = Opendir(name)")
def Opendir(name: _Path) -> _Directory:
    """Open a directory for ``Readdir``; ``Closedir`` closes it."""
    return _Directory(name)


@exits("entry = Readdir(dirp)")
def Readdir(dirp: _Directory) -> _Entry | None:
    """Return the next entry of a directory, with the attributes ``d_name`` and ``d_ino``; None at the end."""
    return dirp.next()


@exits("Closedir(dirp)")
def Closedir(dirp: _Directory) -> None:
    """Close a directory."""
    dirp.close()


# I/O multiplexing (12.2)


class fd_set(set[int]):
    """A set of descriptors for ``Select``. To copy one, as C does by assignment, call ``copy()``."""


@raises("FD_ZERO(fds), with fds = fd_set()")
def FD_ZERO(fds: fd_set) -> None:
    """Remove all descriptors from the set."""
    fds.clear()


@raises("FD_SET(fd, fds), with fds = fd_set()")
def FD_SET(fd: int, fds: fd_set) -> None:
    """Add a descriptor to the set. ``ValueError`` if it is FD_SETSIZE or greater, which the book leaves unchecked."""
    if not 0 <= fd < FD_SETSIZE:
        raise ValueError(f"a descriptor of an fd_set must be from 0 to {FD_SETSIZE - 1}, not {fd}")
    fds.add(fd)


@raises("FD_CLR(fd, fds), with fds = fd_set()")
def FD_CLR(fd: int, fds: fd_set) -> None:
    """Remove a descriptor from the set."""
    fds.discard(fd)


@raises("FD_ISSET(fd, fds), with fds = fd_set()")
def FD_ISSET(fd: int, fds: fd_set) -> bool:
    """Report whether a descriptor is in the set."""
    return fd in fds


if TYPE_CHECKING:

    @overload
    def Select(
        n: int,
        readfds: fd_set | None,
        writefds: fd_set | None,
        exceptfds: fd_set | None,
        timeout: float | None = None,
        /,
    ) -> int: ...
    @overload
    def Select(
        rlist: Iterable[FileDescriptorLike],
        wlist: Iterable[FileDescriptorLike],
        xlist: Iterable[FileDescriptorLike],
        timeout: float | None = None,
        /,
    ) -> tuple[list[Any], list[Any], list[Any]]: ...


@exits("nready = Select(n, readfds, writefds, exceptfds, timeout)", "r, w, x = Select(rlist, wlist, xlist, timeout)")
def Select(n: Any, readfds: Any, writefds: Any, exceptfds: Any = ..., timeout: Any = None, /) -> Any:
    """Wait until a descriptor is ready, or ``timeout`` seconds have passed (None: no limit).

    ``Select(rlist, wlist, xlist, timeout=None)`` returns three lists of what is ready, as ``select.select`` does.
    ``Select(n, readfds, writefds, exceptfds, timeout=None)``, the book's form, removes from each ``fd_set`` (or None)
    the descriptors that are not ready, and returns the number of those that are; only descriptors below ``n`` count.
    """
    if not hasattr(n, "__index__"):
        return select.select(n, readfds, writefds, None if exceptfds is ... else exceptfds)
    sets = readfds, writefds, exceptfds
    if not all(fds is None or isinstance(fds, set) for fds in sets):
        raise TypeError("the sets of descriptors must be of type fd_set, or None")
    rlist, wlist, xlist = ([fd for fd in fds or () if fd < n] for fds in sets)
    ready = select.select(rlist, wlist, xlist, timeout)
    for fds, those in zip(sets, ready, strict=True):
        if fds is not None:
            fds.intersection_update(those)
    return sum(map(len, ready))


# Standard I/O


@exits("buf = Fgets(MAXLINE, stdin)")
def Fgets(n: int, stream: _HasReadline[_T]) -> _T | None:
    """Read a line, including its newline, of at most ``n - 1`` characters (bytes from a binary stream).

    Returns None at EOF. ``n`` counts the NUL of the C string; ``n < 2`` is a ``ValueError``.
    """
    if not hasattr(stream, "readline"):
        raise TypeError(f"a stream is required, such as stdin, not {type(stream).__name__}")
    return stream.readline(without_nul(n, "n")) or None


@exits("Fputs(buf, stdout)")
def Fputs(text: _T, stream: _HasWrite[_T]) -> None:
    """Write ``text`` to a stream, or bytes to a binary stream.

    Standard output is flushed, whether it is a terminal or not, so that the lines of this program and of ``print`` stay
    in order. The caller flushes any other stream.
    """
    if not hasattr(stream, "write"):
        raise TypeError(f"a stream is required, such as stdout, not {type(stream).__name__}")
    if sys.stdout is None or stream not in (sys.stdout, getattr(sys.stdout, "buffer", None)):
        stream.write(text)
        return
    sys.stdout.flush()
    stream.write(text)
    sys.stdout.flush()

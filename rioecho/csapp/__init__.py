"""The names of csapp.h, for programs that follow the book: CS:APP chapters 10 to 12.

The lower-case functions raise exceptions. The capitalised ones, the book's wrappers, take Python's arguments; when the
system reports an error they print ``NAME error: reason`` to stderr and exit with status 1. (The book's status 0 would
report success.) Both raise ``TypeError`` and ``ValueError`` for a wrong argument, which is a bug in the program; the
``TypeError`` shows the right call.

A wrapper in the main thread exits by raising ``SystemExit``; in another thread it calls ``os._exit``, because
``SystemExit`` would end that thread only.

Where C stores a result in an argument, the function returns it: ``connfd, clientaddr = Accept(listenfd)``. The reading
functions of RIO and ``Read`` have both forms: ``n = rio_readlineb(rio, buf, MAXLINE)``, with ``buf =
bytearray(MAXLINE)``, and ``line = rio_readlineb(rio, MAXLINE)``. The streams ``stdin``, ``stdout`` and ``stderr`` carry
bytes, independent of the encoding.

The functions are in the other files of this folder: _rio, _sockets, _files, _processes and _threads; _calls is what
they share, _constants has the constants.
"""

from __future__ import annotations

import sys

from rioecho.csapp import _constants
from rioecho.csapp._constants import *  # noqa: F403, they are listed in that module
from rioecho.csapp._files import (
    FD_CLR,
    FD_ISSET,
    FD_SET,
    FD_ZERO,
    Closedir,
    Dup2,
    Fgets,
    Fputs,
    Fstat,
    Lseek,
    Mmap,
    Munmap,
    Open,
    Opendir,
    Read,
    Readdir,
    Select,
    Stat,
    Write,
    fd_set,
)
from rioecho.csapp._processes import (
    Execve,
    Fork,
    Kill,
    Signal,
    Wait,
    Waitpid,
    app_error,
    posix_error,
    unix_error,
)
from rioecho.csapp._rio import (
    Rio_readinitb,
    Rio_readlineb,
    Rio_readn,
    Rio_readnb,
    Rio_writen,
    rio_readinitb,
    rio_readlineb,
    rio_readn,
    rio_readnb,
    rio_writen,
)
from rioecho.csapp._sockets import (
    Accept,
    Bind,
    Close,
    Connect,
    Freeaddrinfo,
    Getaddrinfo,
    Getnameinfo,
    Listen,
    Open_clientfd,
    Open_listenfd,
    Setsockopt,
    Socket,
)
from rioecho.csapp._threads import (
    P,
    Pthread_create,
    Pthread_detach,
    Pthread_exit,
    Pthread_join,
    Pthread_once,
    Pthread_self,
    Sem_init,
    V,
    pthread_self,
    sem_t,
)
from rioecho.sockets import open_clientfd, open_listenfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    stdin: BinaryIO
    stdout: BinaryIO
    stderr: BinaryIO

__all__ = [
    "FD_CLR", "FD_ISSET", "FD_SET", "FD_ZERO", "Accept", "Bind", "Close", "Closedir", "Connect", "Dup2", "Execve",
    "Fgets", "Fork", "Fputs", "Freeaddrinfo", "Fstat", "Getaddrinfo", "Getnameinfo", "Kill", "Listen", "Lseek", "Mmap",
    "Munmap", "Open", "Open_clientfd", "Open_listenfd", "Opendir", "P", "Pthread_create", "Pthread_detach",
    "Pthread_exit", "Pthread_join", "Pthread_once", "Pthread_self", "Read", "Readdir", "Rio_readinitb", "Rio_readlineb",
    "Rio_readn", "Rio_readnb", "Rio_writen", "Select", "Sem_init", "Setsockopt", "Signal", "Socket", "Stat", "V",
    "Wait", "Waitpid", "Write", "app_error", "fd_set", "open_clientfd", "open_listenfd", "posix_error", "pthread_self",
    "rio_readinitb", "rio_readlineb", "rio_readn", "rio_readnb", "rio_writen", "sem_t", "stderr", "stdin", "stdout",
    "unix_error",
]  # fmt: skip
__all__ += _constants.__all__


if not TYPE_CHECKING:  # with a __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Return the standard stream of this moment: a program may replace those of ``sys``."""
        if name in ("stdin", "stdout", "stderr"):
            stream = getattr(sys, name)
            return getattr(stream, "buffer", stream)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

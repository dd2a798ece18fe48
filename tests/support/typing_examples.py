"""The types of the public names. Checked by mypy --strict and pyright (test_typing.py), never run.

A line with a ``type: ignore`` is an error that the type checker must report; if it does not, the comment is an error.
"""

import asyncio
import csv
import io
import json
import os
import pickle
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any, BinaryIO, TextIO, assert_type

import rioecho
from rioecho import (
    ConcurrentCall,
    EchoServer,
    FrameTooLong,
    IncompleteRead,
    LineTooLong,
    Rio,
    Woken,
    aio,
    connect,
    csapp,
    echo,
    makefile,
    open_clientfd,
    open_listenfd,
    rio_readinitb,
    rio_readlineb,
    rio_readn,
    rio_readnb,
    rio_writen,
    written,
)
from rioecho.aio import streams
from rioecho.text import TextFile

# ---- making a Rio


def make(sock: socket.socket, encrypted: ssl.SSLSocket, file: BinaryIO, anything: object) -> None:
    assert_type(Rio(0), Rio)
    assert_type(Rio(sock, bufsize=8192, timeout=1, max_line=None, closefd=True), Rio)
    assert_type(Rio(encrypted, timeout=None), Rio)
    assert_type(Rio(file, timeout=0.5, max_line=100), Rio)
    Rio()  # type: ignore[call-arg]
    Rio("file")  # type: ignore[arg-type]
    Rio(anything)  # type: ignore[arg-type]
    Rio(0, 8192)  # type: ignore[call-arg]
    Rio(0, bufsize=None)  # type: ignore[arg-type]
    Rio(0, timeout="1")  # type: ignore[arg-type]
    Rio(0, encoding="utf-8")  # type: ignore[call-arg]


class Mine(Rio):  # type: ignore[misc]
    """Rio is final."""


# ---- reading


def read(rio: Rio) -> None:
    assert_type(rio.readline(), bytes)
    assert_type(rio.readline(100, timeout=1.5), bytes)
    assert_type(rio.readline(None), bytes)
    assert_type(rio.readlines(), list[bytes])
    assert_type(rio.readlines1(timeout=None), list[bytes])
    assert_type(rio.skipline(), int)
    assert_type(rio.readuntil(), bytes)
    assert_type(rio.readuntil(bytearray(b"\r\n"), 100, timeout=0), bytes)
    assert_type(rio.read(), bytes)
    assert_type(rio.read(10, timeout=1), bytes)
    assert_type(rio.readexactly(10), bytes)
    assert_type(rio.read1(), bytes)
    assert_type(rio.readinto(bytearray(10)), int)
    assert_type(rio.readinto1(memoryview(bytearray(10)), timeout=1), int)
    assert_type(iter(rio), Rio)
    assert_type(next(rio), bytes)
    assert_type([line for line in rio], list[bytes])  # noqa: C416, the loop itself is checked
    rio.readline(1.5)  # type: ignore[arg-type]
    rio.readline(100, 1.5)  # type: ignore[call-arg]
    rio.readuntil("\n")  # type: ignore[arg-type]
    rio.readexactly()  # type: ignore[call-arg]
    rio.readexactly(None)  # type: ignore[arg-type]
    rio.readinto(b"read-only, which the type of a buffer cannot express")
    rio.readinto("text")  # type: ignore[arg-type]
    rio.read(timeout="1")  # type: ignore[arg-type]


def hold(rio: Rio) -> None:
    assert_type(rio.fill(), int)
    assert_type(rio.fill(100, timeout=1), int)
    assert_type(rio.peek(), bytes)
    assert_type(rio.buffered, int)
    assert_type(rio.has_line(), bool)
    assert_type(rio.read_buffered(), bytes)
    rio.buffered = 1  # type: ignore[misc]
    rio.fill(None)  # type: ignore[arg-type]


# ---- writing


def write(rio: Rio) -> None:
    assert_type(rio.writen(b"data", timeout=1), int)
    assert_type(rio.write(memoryview(b"data")), int)
    assert_type(rio.flush(timeout=None), None)
    rio.writelines(bytearray(b"data") for _ in range(3))
    rio.write("text")  # type: ignore[arg-type]
    rio.write(b"data", timeout=1)  # type: ignore[call-arg]
    rio.writen(1)  # type: ignore[arg-type]
    rio.writelines(["text"])  # type: ignore[list-item]


# ---- the descriptor and closing


def end(rio: Rio) -> None:
    assert_type(rio.fileno(), int)
    assert_type(rio.isatty() or rio.readable() or rio.writable() or rio.seekable(), bool)
    assert_type(rio.closed, bool)
    assert_type(rio.timeout, float | None)
    rio.timeout = 1
    rio.timeout = None
    assert_type(rio.max_line, int | None)
    with rio as same:
        assert_type(same, Rio)
    assert_type(rio.close(), None)
    assert_type(rio.detach(), tuple[Any, bytes])
    rio.timeout = "1"  # type: ignore[assignment]
    rio.max_line = 1  # type: ignore[misc]
    rio.closed = True  # type: ignore[misc]
    rio.other = 1  # type: ignore[attr-defined]


# ---- connections


def dial(path: Path) -> None:
    assert_type(connect("localhost", 8000), Rio)
    assert_type(connect("localhost", "http", timeout=1, bufsize=100, max_line=None), Rio)
    assert_type(connect("/run/socket"), Rio)
    assert_type(connect(path, timeout=None), Rio)
    assert_type(connect(b"\0abstract"), Rio)
    assert_type(connect(("localhost", 8000), timeout=1), Rio)
    assert_type(connect(("::1", 8000, 0, 0)), Rio)
    with connect("localhost", 8000) as rio:
        assert_type(rio, Rio)
    connect()  # type: ignore[call-overload]
    connect(path, 8000)  # type: ignore[call-overload]
    connect(8000)  # type: ignore[call-overload]
    connect(("localhost", 8000), 8000)  # type: ignore[call-overload]
    connect(("localhost", 8000, 0))  # type: ignore[arg-type]
    connect("localhost", None)  # type: ignore[call-overload]
    connect("localhost", 8000, 5)  # type: ignore[call-overload]
    connect("localhost", 8000, closefd=True)  # type: ignore[call-overload]


def files(sock: socket.socket, mode: str) -> None:
    assert_type(makefile(sock), TextFile | io.TextIOWrapper[Rio])
    assert_type(makefile(sock, "r"), TextFile | io.TextIOWrapper[Rio])
    assert_type(makefile(sock, "rw", encoding="utf-8", errors="strict", newline=""), TextFile | io.TextIOWrapper[Rio])
    assert_type(makefile(sock, mode="w", buffering=100), TextFile | io.TextIOWrapper[Rio])
    text: TextIO = makefile(sock, "rw")
    assert_type(text.readline(), str)
    assert_type(makefile(sock, "rb"), Rio)
    assert_type(makefile(sock, "rwb", -1), Rio)
    assert_type(makefile(sock, mode="wb", buffering=None), Rio)
    assert_type(makefile(sock, "rb", 0), socket.SocketIO)
    assert_type(makefile(sock, buffering=0, mode="rwb"), socket.SocketIO)
    makefile()  # type: ignore[call-overload]
    makefile(0, "rb")  # type: ignore[call-overload]
    makefile(sock, "x")  # type: ignore[call-overload]
    makefile(sock, mode)  # type: ignore[call-overload]
    makefile(sock, "rb", encoding="utf-8")  # type: ignore[call-overload]


def in_place_of_the_standard_librarys(sock: socket.socket) -> None:
    binary: BinaryIO = makefile(sock, "rwb")
    buffered: io.BufferedIOBase = makefile(sock, "rb")
    text: io.TextIOBase = makefile(sock)
    pickle.dump(pickle.load(buffered), makefile(sock, "wb"))  # noqa: S301
    json.dump(json.load(text), makefile(sock, "w"))
    shutil.copyfileobj(binary, makefile(sock, "wb"))
    shutil.copyfileobj(makefile(sock, "r"), makefile(sock, "w"))
    csv.writer(makefile(sock, "w", newline="")).writerows(csv.reader(makefile(sock, newline="")))
    subprocess.run(["cat"], stdin=makefile(sock, "rb"))
    print("text", file=makefile(sock, "w"))
    file = makefile(sock, "rw")
    assert_type(file.buffer.readline(), bytes)
    assert_type(file.detach(), Rio)
    for line in file:
        assert_type(line, str)
    for row in makefile(sock, "rb"):
        assert_type(row, bytes)
    assert_type(makefile(sock, "rb").raw, socket.SocketIO)
    Rio(sock).nothing  # type: ignore[attr-defined]  # noqa: B018


# ---- echo


def echoes(sock: socket.socket) -> None:
    assert_type(echo(0), int)
    assert_type(echo(sock, "raw", timeout=1.5), int)
    assert_type(echo(fd=sock, framing="line"), int)
    echo("0")  # type: ignore[arg-type]
    echo(0, "lines")  # type: ignore[arg-type]
    echo(0, "line", 1)  # type: ignore[call-arg]


def serve() -> None:
    server = EchoServer(0, ["localhost"], engine="thread", framing="raw", backlog=10, idle_timeout=0, max_line=100)
    with server as same:
        assert_type(same, EchoServer)
        assert_type(server.addresses, list[tuple[str, int]])
        assert_type(server.stats(), dict[str, int])
        assert_type(server.stop(), None)
    EchoServer("http", "::1", engine="iterative", drain_timeout=0.5).close()
    EchoServer(engine="fast")  # type: ignore[arg-type]
    EchoServer(framing="word")  # type: ignore[arg-type]
    EchoServer(0, None)  # type: ignore[arg-type]


# ---- asyncio


async def on_asyncio(rio: aio.Rio, context: ssl.SSLContext) -> None:
    assert_type(await rio.readline(), bytes)
    assert_type(await rio.readline(100, timeout=1.5), bytes)
    assert_type(await rio.readlines(), list[bytes])
    assert_type(await rio.readlines1(timeout=None), list[bytes])
    assert_type(await rio.skipline() + await rio.skip(10), int)
    assert_type(await rio.readuntil((b"\r", b"\r\n")), bytes)
    assert_type(await rio.read() + await rio.readexactly(10) + await rio.read1(), bytes)
    assert_type(await rio.readframe(2, "little", limit=None), bytes | None)
    assert_type(await rio.readinto(bytearray(10)), int)
    assert_type(await rio.readinto1(memoryview(bytearray(10)), timeout=1), int)
    assert_type(await rio.fill(100), int)
    assert_type(await rio.peek(), bytes)
    async for line in rio:
        assert_type(line, bytes)
    assert_type([line async for line in rio], list[bytes])
    with rio.frame() as same:
        assert_type(same, aio.Rio)
    assert_type(rio.buffered, int)
    assert_type(rio.has_line(), bool)
    assert_type(rio.read_buffered(), bytes)
    assert_type(rio.unread(b"data"), int)
    assert_type(rio.write(memoryview(b"data")), int)
    rio.writelines([b"data"])
    assert_type(await rio.writen(b"data", timeout=1), int)
    await rio.flush(timeout=None)
    await rio.write_eof()
    await rio.start_tls(context, server_hostname="localhost", timeout=1)
    assert_type((rio.closed, rio.timeout, rio.max_line), tuple[bool, float | None, int | None])
    rio.timeout = rio.idle_timeout = 1
    rio.get_extra_info("peername")
    rio.abort()
    await rio.close(timeout=1)
    await rio.aclose()
    rio.readline().decode()  # type: ignore[attr-defined]
    await rio.readline(1.5)  # type: ignore[arg-type]
    await rio.write(b"data")  # type: ignore[misc]
    rio.write("text")  # type: ignore[arg-type]
    rio.fileno()  # type: ignore[attr-defined]
    for _ in rio:  # type: ignore[attr-defined]
        pass


async def in_tasks(rio: aio.Rio) -> None:
    task = asyncio.create_task(rio.readline())
    assert_type(task, asyncio.Task[bytes])
    assert_type(await asyncio.wait_for(rio.readexactly(10), 1), bytes)
    assert_type(await asyncio.gather(rio.readline(), rio.writen(b"data")), tuple[bytes, int])
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(rio.readlines1()), asyncio.Task[list[bytes]])


class MyTwin(aio.Rio):  # type: ignore[misc]
    """It is final."""


async def dial_on_asyncio(path: Path, sock: socket.socket, context: ssl.SSLContext) -> None:
    async with aio.connect("localhost", 8000, ssl=context, timeout=1, max_line=None) as rio:
        assert_type(rio, aio.Rio)
    assert_type(await aio.connect(path), aio.Rio)
    assert_type(await asyncio.create_task(aio.connect(("localhost", 8000))), aio.Rio)
    assert_type(await aio.wrap(sock), aio.Rio)
    async with aio.wrap(0, timeout=1) as rio:
        assert_type(rio, aio.Rio)
    server = await aio.start_server(on_line, "localhost", 8000, backlog=10)
    assert_type(server, asyncio.Server)
    async with aio.start_server(on_line, path) as server:
        await server.serve_forever()
    aio.start_server(on_stream, "localhost", 8000)  # type: ignore[arg-type]


async def on_line(rio: aio.Rio) -> None:
    rio.write(await rio.readline())


async def on_stream(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
    assert_type(await reader.readline(), bytes)
    writer.write(b"data")
    await writer.drain()


# ---- the errors


def value_error(error: ValueError) -> ValueError:
    return error


def eof_error(error: EOFError) -> EOFError:
    return error


def runtime_error(error: RuntimeError) -> RuntimeError:
    return error


def os_error(error: OSError) -> OSError:
    return error


def errors(rio: Rio) -> None:
    try:
        rio.readline()
    except LineTooLong as error:
        assert_type((error.limit, error.buffered), tuple[int, int])
        assert_type(value_error(error), ValueError)
    except IncompleteRead as error:
        assert_type((error.partial, error.expected), tuple[bytes, int | None])
        assert_type(eof_error(error), EOFError)
    except FrameTooLong as error:
        assert_type((error.limit, error.size), tuple[int, int])
        assert_type(value_error(error), ValueError)
    except ConcurrentCall as error:
        assert_type(runtime_error(error), RuntimeError)
        value_error(error)  # type: ignore[arg-type]
    except Woken as error:
        assert_type(error.errno, int | None)
        os_error(error)
    LineTooLong("text", 1)  # type: ignore[arg-type]
    IncompleteRead(b"partial")
    IncompleteRead("text")  # type: ignore[arg-type]


def go_on(rio: Rio, data: bytes) -> None:
    try:
        rio.writen(data)
    except TimeoutError as error:
        assert_type(written(error), int)
        rio.writen(data[written(error) :])
    written(1)  # type: ignore[arg-type]


# ---- the book's functions


def book(sock: socket.socket) -> None:
    assert_type(open_clientfd("localhost", 8000), int)
    assert_type(open_listenfd("http", "::", backlog=1), int)
    rio = rio_readinitb(sock)
    assert_type(rio, Rio)
    assert_type(rio_readlineb(rio), bytes)
    assert_type(rio_readlineb(rio, 100), bytes)
    assert_type(rio_readlineb(rio, maxlen=100), bytes)
    assert_type(rio_readnb(rio, 10), bytes)
    assert_type(rio_readn(0, 10), bytes)
    assert_type(rio_writen(sock, memoryview(b"data")), int)
    buf = bytearray(csapp.MAXLINE)
    assert_type(rio_readlineb(rio, buf, csapp.MAXLINE), int)
    assert_type(rio_readnb(rio, buf, 10), int)
    assert_type(rio_readn(0, buf, n=10), int)
    assert_type(rio_writen(0, buf, 10), int)
    rio_readnb(rio, buf)  # type: ignore[call-overload]
    open_clientfd("localhost")  # type: ignore[call-arg]
    open_clientfd(b"localhost", 8000)  # type: ignore[arg-type]
    rio_readlineb(0)  # type: ignore[call-overload]
    rio_writen(1, "text")  # type: ignore[arg-type]


def capitals(text: io.TextIOWrapper, binary: BinaryIO) -> None:
    fd = csapp.Socket(csapp.AF_INET, csapp.SOCK_STREAM, 0)
    assert_type(fd, int)
    assert_type(csapp.Bind(fd, ("", 8000)), None)
    assert_type(csapp.Listen(fd, csapp.LISTENQ), None)
    assert_type(csapp.Accept(fd), tuple[int, Any])
    assert_type(csapp.Connect(fd, ("localhost", 8000)), None)
    assert_type(csapp.Close(fd), None)
    found = csapp.Getaddrinfo("localhost", "http", flags=csapp.AI_PASSIVE)
    assert_type(found, list[tuple[Any, ...]])
    assert_type(csapp.Freeaddrinfo(found), None)
    assert_type(csapp.Getnameinfo(("::1", 8000, 0, 0), csapp.NI_NUMERICHOST), tuple[str, str])
    assert_type(csapp.Open_clientfd("localhost", 8000), int)
    assert_type(csapp.Open_listenfd(port="8000"), int)
    rio = csapp.Rio_readinitb(fd)
    assert_type(rio, Rio)
    assert_type(csapp.Rio_readlineb(rio, csapp.MAXLINE), bytes)
    assert_type(csapp.Rio_readnb(rio, csapp.RIO_BUFSIZE), bytes)
    assert_type(csapp.Rio_readn(fd, 10), bytes)
    assert_type(csapp.Rio_writen(fd, b"data"), int)
    assert_type(csapp.Fgets(100, text), str | None)
    assert_type(csapp.Fgets(100, binary), bytes | None)
    csapp.Fputs("text", text)
    csapp.Fputs(b"data", binary)
    csapp.Fputs(b"data", text)  # type: ignore[misc]
    csapp.Listen(fd)  # type: ignore[call-arg]
    csapp.Open_clientfd("localhost")  # type: ignore[call-arg]
    csapp.Fgets(text, 100)  # type: ignore[arg-type]
    csapp.Fputs(csapp.Fgets(100, csapp.stdin) or b"", csapp.stdout)


def further_wrappers(path: Path) -> None:
    fd = csapp.Open(path, csapp.O_CREAT | csapp.O_RDWR, csapp.DEF_MODE)
    assert_type(fd, int)
    assert_type(csapp.Read(fd, 10), bytes)
    assert_type(csapp.Read(csapp.STDIN_FILENO, bytearray(csapp.MAXBUF), csapp.MAXBUF), int)
    assert_type(csapp.Rio_readlineb(csapp.Rio_readinitb(fd), bytearray(10), 10), int)
    assert_type(csapp.Write(fd, b"data"), int)
    assert_type(csapp.Lseek(fd, 0, csapp.SEEK_SET), int)
    assert_type(csapp.S_ISREG(csapp.Stat(path).st_mode) or csapp.S_ISDIR(csapp.Fstat(fd).st_mode), bool)
    assert_type(csapp.Dup2(fd, csapp.STDOUT_FILENO), int)
    csapp.Setsockopt(fd, csapp.SOL_SOCKET, csapp.SO_REUSEADDR, 1)
    fds = csapp.fd_set()
    csapp.FD_SET(fd, fds)
    assert_type(csapp.FD_ISSET(fd, fds), bool)
    assert_type(csapp.Select(fd + 1, fds, None, None), int)
    assert_type(csapp.Select([fd], [], [], 1.5), tuple[list[Any], list[Any], list[Any]])
    if csapp.Fork() == 0:
        csapp.Execve("/bin/true", ["true"], csapp.environ)
    assert_type(csapp.Wait(), tuple[int, int])
    assert_type(csapp.Waitpid(-1, csapp.WNOHANG), tuple[int, int])
    csapp.Signal(csapp.SIGCHLD, lambda sig: None)
    csapp.Signal(csapp.SIGINT, csapp.SIG_DFL)
    tid = csapp.Pthread_create(lambda vargp: vargp, 1)
    csapp.Pthread_join(tid)
    csapp.Pthread_detach(csapp.Pthread_self())
    mutex = csapp.Sem_init(1)
    assert_type(mutex, csapp.sem_t)
    csapp.P(mutex)
    csapp.V(mutex)
    csapp.P(1)  # type: ignore[arg-type]
    csapp.Pthread_create(1)  # type: ignore[arg-type]
    csapp.Select(fd, [fd], None, None)  # type: ignore[call-overload]


# ---- the package


def package() -> None:
    assert_type(rioecho.__version__, str)
    assert_type(rioecho.__all__, list[str])
    assert_type(os.fspath(rioecho.__file__), str)
    assert_type(rioecho.aio.__all__, list[str])


def nothing_else() -> None:
    from rioecho import Reo  # type: ignore[attr-defined]  # noqa: F401

    rioecho.reo  # type: ignore[attr-defined]  # noqa: B018

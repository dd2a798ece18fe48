"""Connecting a Rio of asyncio: connect()."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl as tls
from time import monotonic

from rioecho._core.addresses import check_host, check_path, check_port, describe_error, in_turn, shown, shown_path
from rioecho.aio.opening import Opening
from rioecho.aio.rio import Rio, open_rio
from rioecho.sockets import _CONNECT, _host_and_port, _is_own_peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import EllipsisType
    from typing import Any

    from rioecho._core.addresses import Path
    from rioecho.sockets import _HostPort

#: The options of a Rio; all others are asyncio's.
RIO_OPTIONS = ("bufsize", "idle_timeout", "max_line")
#: The options that asyncio's loops take for TLS.
TLS_OPTIONS = ("ssl_handshake_timeout", "ssl_shutdown_timeout")
#: Options with which the loop chooses among the addresses itself.
OF_ALL_ADDRESSES = ("happy_eyeballs_delay", "interleave", "all_errors")
QUEUE_LOOK = 0.01  # seconds until the next attempt to connect to a unix socket whose listen queue is full


def connect(
    host: Path | _HostPort,
    port: int | str | EllipsisType = ...,
    *,
    ssl: tls.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Opening[Rio]:
    """Connect, as ``rioecho.connect()`` does, and return a ``Rio``.

    ``rio = await connect(host, port)``, or ``async with connect(host, port) as rio:``, which closes it at the end of
    the block, and aborts it if the block ends by an exception. ``connect((host, port))`` takes an address as sockets
    return it, ``connect(path)`` is for a unix socket.

    ``ssl`` is the ``ssl.SSLContext`` of a TLS connection, or ``True`` for ``ssl.create_default_context()``. The name
    that is checked is ``server_hostname``, by default ``host``; for a unix socket it must be passed.

    ``timeout`` in seconds limits connecting, with the TLS handshake and over all addresses together, and is then the
    timeout of each call on the Rio; ``None`` waits without limit. Each address gets an equal share of the time left.
    ``bufsize``, ``idle_timeout`` and ``max_line`` are those of ``rioecho.Rio``. All other options are passed to the
    event loop's ``create_connection()``: ``family``, ``local_addr``, ``ssl_handshake_timeout`` and so on. With
    ``happy_eyeballs_delay`` or ``interleave`` the loop chooses the address. TCP_NODELAY is set.

    Raises an ``OSError`` that names host and port, or the path: the last error if all addresses fail;
    ``socket.gaierror`` if the host has no address; ``TimeoutError``; ``ssl.SSLError``. With a ``timeout`` of 0 it
    raises ``BlockingIOError``. After an error, a timeout or a cancellation nothing is left of the connection.
    """
    return Opening(_connect(host, port, ssl, server_hostname, timeout, options))


async def _connect(
    host: Any, port: Any, ssl: Any, server_hostname: str | None, timeout: float | None, options: dict[str, Any]
) -> Rio:
    loop = asyncio.get_running_loop()
    rio_options = {name: options.pop(name) for name in RIO_OPTIONS if name in options}
    rio_options["timeout"] = timeout
    open_rio(loop, **rio_options)  # checks them
    tls_options = {name: options.pop(name) for name in TLS_OPTIONS if name in options}
    if isinstance(host, tuple):
        host, port = _host_and_port(host, port)
    is_path = isinstance(port, type(...))
    if is_path and not isinstance(host, str | bytes | os.PathLike):
        raise TypeError(f"{_CONNECT}, not connect({type(host).__name__})")
    context = client_context(ssl, server_hostname)
    if context is not None and server_hostname is None:
        if is_path:
            raise ValueError("server_hostname must be passed for TLS over a unix socket")
        server_hostname = host
    what = f"cannot connect to {shown_path(os.fsdecode(host))}" if is_path else _what(host, port)
    if timeout == 0:
        raise BlockingIOError(errno.EAGAIN, f"{what}: connecting would wait, and the timeout is 0")
    deadline = None if timeout is None else monotonic() + timeout
    if is_path:
        rio = await _connect_unix(loop, host, deadline, what, rio_options, options)
    elif any(name in options for name in OF_ALL_ADDRESSES):
        rio = await _attempt(loop, deadline, rio_options, host=host, port=port, **options)
    else:
        rio = await _connect_tcp(loop, host, port, deadline, what, rio_options, options)
    if context is not None:
        try:
            async with asyncio.timeout(_left(deadline)):
                await rio._secure(context, server_hostname=server_hostname, **tls_options)
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, f"{what}: timed out in the TLS handshake") from None
    return rio


def client_context(ssl: Any, server_hostname: str | None) -> tls.SSLContext | None:
    """Return the context of ``ssl``, an argument as asyncio's functions take it; None for no TLS."""
    if ssl is None or ssl is False:
        if server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")
        return None
    if ssl is True:
        return tls.create_default_context()
    if not isinstance(ssl, tls.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, True or None, not {type(ssl).__name__}")
    return ssl


def _what(host: Any, port: Any) -> str:
    return f"cannot connect to {shown(check_host(host))} port {shown(str(check_port(port)))}"


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - monotonic(), 0)


async def _attempt(loop: AbstractEventLoop, deadline: float | None, rio_options: dict[str, Any], **options: Any) -> Rio:
    """Make one connection, until a time; if that fails, nothing is left of it."""
    rio, protocol = open_rio(loop, **rio_options)
    try:
        async with asyncio.timeout(_left(deadline)):
            await loop.create_connection(lambda: protocol, **options)
    except BaseException:
        rio.abort()
        raise
    return rio


async def _connect_tcp(
    loop: AbstractEventLoop,
    host: str,
    port: int | str,
    deadline: float | None,
    what: str,
    rio_options: dict[str, Any],
    options: dict[str, Any],
) -> Rio:
    """Connect to the first address of a host that answers."""
    asked = {name: options.pop(name) for name in ("family", "proto", "flags") if name in options}
    try:
        async with asyncio.timeout(_left(deadline)):
            found = await loop.getaddrinfo(host, check_port(port), type=socket.SOCK_STREAM, **asked)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, f"{what}: not a host name") from None
    except OSError as error:  # TimeoutError too
        raise describe_error(error, what) from None
    for info, limit in in_turn(list(found), deadline):
        family, _, protocol, _, address = info
        number = address[0]
        if len(address) == 4 and address[3] and "%" not in number:
            number = f"{number}%{address[3]}"
        try:
            rio = await _attempt(
                loop, limit, rio_options, host=number, port=address[1], family=family, proto=protocol, **options
            )
        except OSError as error:
            if info is found[-1]:
                raise _plainly(error, what) from None
            continue
        # TCP connects a socket to itself if its ephemeral port happens to be the port it connects to.
        if not _is_own_peer(rio.get_extra_info("socket")):
            return rio
        await rio.__aexit__(OSError, None, None)
        if info is found[-1]:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{what}: {os.strerror(errno.ECONNREFUSED)}")
    raise socket.gaierror(socket.EAI_NONAME, f"{what}: the name has no address")


def _plainly(error: OSError, what: str) -> OSError:
    """Return an error of the same class and errno with the system's words, which differ from loop to loop."""
    if error.errno is None:
        return describe_error(TimeoutError("timed out") if isinstance(error, TimeoutError) else error, what)
    if error.errno <= 0:  # of getaddrinfo
        return describe_error(error, what)
    return type(error)(error.errno, f"{what}: {os.strerror(error.errno)}")


async def _connect_unix(
    loop: AbstractEventLoop,
    path: Any,
    deadline: float | None,
    what: str,
    rio_options: dict[str, Any],
    options: dict[str, Any],
) -> Rio:
    """Connect to a unix socket."""
    maybe_host = isinstance(path, str) and "/" not in path
    path = check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            # connect() to a unix socket does not wait, unless the listen queue is full: then it fails with EAGAIN, and
            # no event reports when to try again.
            try:
                sock.connect(path)
                break
            except BlockingIOError:
                left = _left(deadline)
                if left == 0:
                    raise TimeoutError(errno.ETIMEDOUT, f"{what}: timed out") from None
                await asyncio.sleep(QUEUE_LOOK if left is None else min(left, QUEUE_LOOK))
        return await _attempt(loop, deadline, rio_options, sock=sock, **options)
    except OSError as exc:
        sock.close()
        error = exc if isinstance(exc, TimeoutError) else describe_error(exc, what)
        if exc.errno == errno.ENOENT and maybe_host:
            hint = "without a port this is a path; to connect to a host, use connect(host, port)"
            error = FileNotFoundError(errno.ENOENT, f"{error.strerror} ({hint})")
        raise error from None
    except BaseException:
        sock.close()
        raise

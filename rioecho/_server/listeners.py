"""The sockets of a server: TCP on every address of every host, unix sockets, and those passed in.

After an error nothing stays open or on disk but the sockets passed in, and the message names the address.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import threading
from time import monotonic, sleep, time

from rioecho._core.addresses import (
    LISTENQ,
    check_host,
    check_path,
    check_port,
    describe_error,
    look_up,
    open_socket,
    shown,
    shown_path,
)
from rioecho._server.folderlock import FolderLock
from rioecho._server.passed import listens
from rioecho._server.passed import passed_sockets as passed_sockets

TYPE_CHECKING = False  # not typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rioecho._core.addresses import Address, Path

#: The addresses of hosts that are not looked up: those of localhost, whatever the hosts file contains (RFC 6761, 6.3),
#: and those of "*", every address of both families.
HOSTS = {"localhost": ("127.0.0.1", "::1"), "*": ("0.0.0.0", "::")}  # noqa: S104

#: Maximum number of attempts to find a port that is free at every address, or to remove a stale socket file.
LISTEN_ATTEMPTS = 20

#: Time in seconds that a server has from bind() to listen(), during which its socket file looks stale.
GRACE = 0.1

#: Timeout in seconds for the lock on the directory of a unix socket.
LOCK_PATIENCE = 2.0

#: Names of the types of files that may be at the path of a unix socket.
KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
}


class Listeners:
    """The listening sockets of one server, non-blocking, and their files.

    They are TCP sockets on ``port`` of every address of ``hosts`` (see ``listen_sockets``), a unix socket at each of
    ``paths`` (see ``UnixListener``) and the ``passed`` sockets (see ``passed_sockets``), in this order. The passed
    sockets are taken over: they are closed with the others. After an error they are given back.

    - ``sockets``: the listening stream sockets, to accept from;
    - ``shared``: the passed ones among them, whose listen queues belong to whoever passed them;
    - ``addresses``: the ``(host, port)`` or the path of each of ``sockets``;
    - ``connected``: the connected stream sockets among the passed ones, to be served;
    - ``datagrams``: the datagram sockets among the passed ones, to be served by UDP.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        port: int | str = 0,
        *,
        paths: Iterable[Path] = (),
        passed: Iterable[socket.socket] = (),
        backlog: int = LISTENQ,
        unix_mode: int | None = None,
    ) -> None:
        passed = list(passed)
        self._passed = [(sock, sock.gettimeout(), _is_blocking(sock)) for sock in passed]
        self._unix: list[UnixListener] = []
        self.sockets: list[socket.socket] = []
        self.addresses: list[tuple[str, int] | str] = []
        self.datagrams = [sock for sock in passed if sock.type == socket.SOCK_DGRAM]
        streams = [sock for sock in passed if sock.type != socket.SOCK_DGRAM]
        self.shared = frozenset(sock for sock in streams if listens(sock))
        self.connected = [sock for sock in streams if sock not in self.shared]
        try:
            self.sockets += listen_sockets(hosts, port, backlog=backlog)
            for path in paths:
                self._unix.append(UnixListener(path, backlog=backlog, mode=unix_mode))
                self.sockets.append(self._unix[-1].sock)
            self.sockets += [sock for sock in streams if sock in self.shared]
            for sock in [*self.sockets, *self.connected, *self.datagrams]:
                sock.setblocking(False)
            self.addresses += map(address_of, self.sockets)
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Close all sockets but the passed ones, which are the caller's again, and as blocking as they were."""
        for sock, timeout, is_blocking in self._passed:
            with contextlib.suppress(OSError):  # it was not open
                sock.settimeout(timeout)
                os.set_blocking(sock.fileno(), is_blocking)  # which its timeout need not tell
        passed = {sock for sock, *_ in self._passed}
        self.sockets = [sock for sock in self.sockets if sock not in passed]
        self.connected, self.datagrams = [], []
        self.close()

    def hide(self) -> None:
        """Let no new client connect to the unix sockets, except passed ones, and remove their files.

        The listen queues stay.
        """
        for unix in self._unix:
            unix.hide()

    def stop_listening(self) -> None:
        """Close the listening sockets and remove the files of the unix sockets, except passed ones."""
        for unix in self._unix:
            unix.close()
        for sock in self.sockets:
            sock.close()

    def close(self) -> None:
        """Close all sockets and remove the files of the unix sockets, except passed ones. Closing again does nothing.

        In a forked child this closes the child's descriptors only: the files are the parent's.
        """
        self.stop_listening()
        for sock in [*self.connected, *self.datagrams]:
            sock.close()


def _is_blocking(sock: socket.socket) -> bool:
    return sock.fileno() >= 0 and os.get_blocking(sock.fileno())


def listen_sockets(
    hosts: Iterable[str], port: int | str, *, backlog: int = LISTENQ, purpose: str = ""
) -> list[socket.socket]:
    """Listen on the same port of every address of every host. Returns blocking sockets, which the caller owns.

    Port 0 chooses one free port for all of them. ``localhost`` stands for both loopback addresses, ``*`` for every
    address of both families. An IPv6 socket accepts IPv6 only: ``::`` is every IPv6 address. If a name has several
    addresses, those that this machine does not have are skipped (``::1`` without IPv6), unless it has none of them.
    Raises ``OSError``, which names the address and the ``purpose``, for any other failure, such as a port in use at one
    address; nothing stays open then.
    """
    port = check_port(port)
    wanted = []
    for host in hosts:
        what = f"cannot listen on {shown(check_host(host))} port {shown(str(port))}{purpose}"
        wanted.append(
            [info for name in HOSTS.get(host, (host,)) for info in look_up(name, port, socket.AI_PASSIVE, what)]
        )
    for attempt in range(LISTEN_ATTEMPTS):
        try:
            return _listen_on_all(wanted, backlog, purpose)
        except OSError as exc:
            # A port that is free at the first address may be in use at the next one: try another port.
            if port != 0 or exc.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _listen_on_all(wanted: list[list[Any]], backlog: int, purpose: str) -> list[socket.socket]:
    """Listen on every address of ``wanted``, a getaddrinfo() list for each host; the first socket decides the port."""
    opened: dict[Address, socket.socket] = {}

    def listen(sock: socket.socket, address: Address) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:  # otherwise it would conflict with the IPv4 socket on the same port
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        port = next(iter(opened.values())).getsockname()[1] if opened else address[1]
        sock.bind((address[0], port, *address[2:]))
        sock.listen(backlog)

    try:
        for addresses in wanted:
            absent = None
            for family, kind, protocol, _, address in addresses:
                try:
                    if address not in opened:
                        opened[address] = open_socket(family, kind, protocol, address, listen)
                except OSError as exc:
                    explained = describe_error(exc, f"cannot listen on {address[0]} port {address[1]}{purpose}")
                    if exc.errno == errno.EINVAL and family == socket.AF_INET6 and not address[3]:
                        # The kernel's only reason is a link-local address without a scope id.
                        explained = OSError(exc.errno, f"{explained.strerror}: add its interface, as in fe80::1%eth0")
                    if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise explained from None
                    absent = explained
            if absent and not any(info[4] in opened for info in addresses):
                raise absent
    except BaseException:
        for sock in opened.values():
            sock.close()
        raise
    return list(opened.values())


class UnixListener:
    """A blocking, listening unix socket ``sock`` and its file ``path`` (unix(7)).

    A stale socket file is replaced. Raises ``OSError``, which names the path, if another server listens there
    (EADDRINUSE) or if the file is not a socket (EEXIST); no other kind of file is ever removed. Raises ``ValueError``
    for an empty path or one that contains a NUL; on Linux a leading NUL makes the name abstract, without a file. Who
    may connect is decided by the permissions of the directory and of the file: ``mode``, or without it the umask.
    """

    def __init__(self, path: Path, *, backlog: int = LISTENQ, mode: int | None = None) -> None:
        #: The path as it was passed, as a str.
        self.path = os.fsdecode(check_path(path))
        if not self.path:  # the kernel would choose a name
            raise ValueError("the path of a unix socket is empty")
        abstract = self.path[0] == "\0"
        if abstract and not sys.platform.startswith("linux"):
            raise ValueError(f"a unix socket has an abstract name on Linux only: {self.path!r}")
        if abstract and mode is not None:
            raise ValueError(f"{shown_path(self.path)} is an abstract name, which has no file and no mode")
        # Absolute, because the program may change its working directory before it closes this.
        self._file = "" if abstract else os.path.abspath(self.path)
        self._own: tuple[int, ...] | None = None  # device and inode
        self._pid = os.getpid()
        self._lock = threading.RLock()

        try:
            with _locked(self._file):
                self.sock = self._listening(backlog, mode)
        except BaseException:
            self._remove()
            raise

    def _listening(self, backlog: int, mode: int | None) -> socket.socket:
        def listen(sock: socket.socket, address: Address) -> None:
            try:
                sock.bind(address)
                if self._file:
                    self._own = _identity(os.lstat(address))[:2]
                if mode is not None:
                    os.chmod(address, mode)  # before listen(), so that nobody has connected under the umask's mode
            except BaseException:
                if self._file and sock.getsockname():  # it is bound, so the file is this socket's
                    with contextlib.suppress(OSError):
                        os.unlink(address)
                raise
            sock.listen(backlog)

        what = f"cannot listen on {shown_path(self.path)}"
        for attempt in range(LISTEN_ATTEMPTS):
            try:
                return open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self.path, listen)
            except OSError as exc:
                if not self._file or exc.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS - 1:
                    raise describe_error(exc, what) from None
            try:
                _remove_stale(self.path)
            except OSError as exc:
                raise describe_error(exc, what) from None
        raise AssertionError("unreachable")

    def hide(self) -> None:
        """Let no new client connect, and remove the file, if it is still this socket's. The listen queue stays.

        Only the process that created the listener does this.
        """
        if os.getpid() == self._pid:  # in a forked child the lock may never be released
            with self._lock:
                self._remove()
            if sys.platform.startswith("linux"):
                # Connecting fails from now on, to an abstract name too, and what is in the queue can be accepted.
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Remove the file as ``hide()`` does, and close the socket."""
        # Remove before the close: until then no other file can reuse the inode number.
        self.hide()
        self.sock.close()

    def _remove(self) -> None:
        own, self._own = self._own, None
        # An error is ignored: at worst a stale socket file stays.
        with contextlib.suppress(OSError):
            if own and _identity(os.lstat(self._file))[:2] == own:
                os.unlink(self._file)


def _remove_stale(path: str) -> None:
    """Remove a stale socket file, or wait a little if it is new. Raises ``OSError`` if the path is in use otherwise."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "a device")
        raise OSError(errno.EEXIST, f"it is {kind}, not a socket")
    if _is_listened_on(path):
        raise OSError(errno.EADDRINUSE, "another server is listening there")
    if 0 <= time() - found.st_mtime < GRACE:  # of a server that takes no lock and may be about to listen
        sleep(GRACE)
        return
    with contextlib.suppress(FileNotFoundError):
        if _identity(os.lstat(path)) != _identity(found):
            return  # replaced in the meantime by a server that takes no lock
        try:
            os.unlink(path)
        except PermissionError as exc:
            raise describe_error(exc, "cannot remove the stale socket file") from None


def _locked(file: str) -> contextlib.AbstractContextManager[object]:
    """Lock the directory of ``file`` against other servers; do nothing for ``""``. Returns a context manager.

    Without the lock, two servers that find the same stale socket could each remove the file that the other has just
    bound. If the lock cannot be had within ``LOCK_PATIENCE`` seconds, or not at all, this continues without it: a lock
    must not keep a server from starting.
    """
    if file:
        with contextlib.suppress(OSError):  # a directory without read permission, or a file system without locks
            lock = FolderLock(os.path.dirname(file))
            until = monotonic() + LOCK_PATIENCE
            while not lock.take() and monotonic() < until:
                sleep(LOCK_PATIENCE / 100)
            return lock
    return contextlib.nullcontext()


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    """Return device, inode and modification time: a file system may reuse the inode number of a removed file."""
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False  # on macOS, also if the listen queue is full
        except BlockingIOError:
            return True  # the listen queue is full
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:  # in use by a socket of another type
                raise
    return True


def address_of(sock: socket.socket) -> tuple[str, int] | str:
    """Return the address of a TCP or UDP socket, or the path of a unix socket."""
    return os.fsdecode(sock.getsockname()) if sock.family == socket.AF_UNIX else host_and_port(sock)


def host_and_port(sock: socket.socket) -> tuple[str, int]:
    """Return the address of a TCP or UDP socket, a link-local one with its scope id."""
    name = sock.getsockname()
    return socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0], name[1]

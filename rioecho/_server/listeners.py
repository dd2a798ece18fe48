"""The listening sockets of a server: TCP on every address of every host, a unix socket, and those that systemd passes.

Nothing stays open or on disk after an error, and the error says what was being done.
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
)
from rioecho._server.folderlock import FolderLock

TYPE_CHECKING = False  # not typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping
    from typing import Any

    from rioecho._core.addresses import Address, Path

#: What the name localhost stands for.
LOOPBACK = ("127.0.0.1", "::1")

#: How often a free port is looked for that is free at every address, and a path made free that is not.
LISTEN_ATTEMPTS = 20

#: Seconds that a server has from bind() to listen(): until then its socket looks like one that nobody listens on.
GRACE = 0.1

#: Seconds that another server's lock on the folder of a unix socket is waited for.
LOCK_PATIENCE = 2.0

#: The first descriptor that systemd passes, and the variables that say so (sd_listen_fds(3)).
FIRST_PASSED = 3
PASSED_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")

#: What may be where a unix socket is to be.
KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
}


class Listeners:
    """The listening sockets of one server, non-blocking, and their files.

    TCP on ``port`` of every address of ``hosts`` (as ``listen_sockets``), a unix socket at each of ``paths`` (as
    ``UnixListener``), and the ``passed`` sockets (as ``passed_sockets`` gives them), which are taken over: they are
    closed with the others, and after an error too. In this order:

    - ``sockets``: the stream sockets, to be accepted from;
    - ``addresses``: of each of them, ``(host, port)`` or the path of the unix socket;
    - ``datagrams``: the datagram sockets among the passed ones, for who serves UDP.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        port: int | str = 0,
        *,
        paths: Iterable[Path] = (),
        passed: Iterable[socket.socket] = (),
        backlog: int = LISTENQ,
    ) -> None:
        passed = list(passed)
        self._unix: list[UnixListener] = []
        self.sockets: list[socket.socket] = []
        self.addresses: list[tuple[str, int] | str] = []
        self.datagrams = [sock for sock in passed if sock.type == socket.SOCK_DGRAM]
        try:
            self.sockets += listen_sockets(hosts, port, backlog=backlog)
            for path in paths:
                self._unix.append(UnixListener(path, backlog=backlog))
                self.sockets.append(self._unix[-1].sock)
            self.sockets += [sock for sock in passed if sock not in self.datagrams]
            for sock in [*self.sockets, *self.datagrams]:
                sock.setblocking(False)
            self.addresses += map(_address, self.sockets)
        except BaseException:
            self.close()
            for sock in passed:
                sock.close()
            raise

    def hide(self) -> None:
        """Remove the files of the unix sockets, but no passed one's: no client finds them, and the queues stay."""
        for unix in self._unix:
            unix.hide()

    def close(self) -> None:
        """Close the sockets, and remove the files of the unix sockets, but no passed one's. Again: does nothing.

        In a forked child it closes the child's descriptors; the files stay, they are the parent's.
        """
        for unix in self._unix:
            unix.close()
        for sock in [*self.sockets, *self.datagrams]:
            sock.close()


def listen_sockets(hosts: Iterable[str], port: int | str, *, backlog: int = LISTENQ) -> list[socket.socket]:
    """Listen on the same port of every address of every host: sockets, blocking, the caller's to close.

    Port 0 is one free port for all of them. ``localhost`` is both loopback addresses, whatever the hosts file says
    (RFC 6761, 6.3). Of a name with several addresses those that this machine does not have are passed over (``::1``
    where there is no IPv6), as long as one is left; a port that is in use at one of them is an ``OSError`` that names
    the address. After an error nothing stays open. An IPv6 socket takes IPv6 only.
    """
    port = check_port(port)
    wanted = []
    for host in hosts:
        what = f"cannot listen on {shown(check_host(host))} port {shown(str(port))}"
        names = LOOPBACK if host == "localhost" else (host,)
        wanted.append([info for name in names for info in look_up(name, port, socket.AI_PASSIVE, what)])
    for attempt in range(LISTEN_ATTEMPTS):
        try:
            return _listen_on_all(wanted, backlog)
        except OSError as exc:
            # A free port of the first address may be taken at the next: then another one will do.
            if port != 0 or exc.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _listen_on_all(wanted: list[list[Any]], backlog: int) -> list[socket.socket]:
    """Listen on every address, a list of getaddrinfo's for each host; the first fixes the port for all."""
    opened: dict[Address, socket.socket] = {}

    def listen(sock: socket.socket, address: Address) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:  # or it would take the port of the IPv4 socket beside it
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
                    explained = describe_error(exc, f"cannot listen on {address[0]} port {address[1]}")
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
    """A listening unix socket ``sock``, blocking, and its file ``path``.

    The socket of a server that is gone is replaced; one that is listened on is an ``OSError`` (EADDRINUSE), and so is
    a path where something else is than a socket: nothing but a socket is ever removed. Every error names the path; a
    NUL in it, or nothing at all, is a ``ValueError``. On Linux a first NUL makes the name abstract: there is no file.
    Who may connect is for the umask and the folder to say.
    """

    def __init__(self, path: Path, *, backlog: int = LISTENQ) -> None:
        #: As it was given, as text.
        self.path = os.fsdecode(check_path(path))
        if not self.path:  # the kernel would choose a name
            raise ValueError("the path of a unix socket is empty")
        abstract = self.path[0] == "\0"
        if abstract and not sys.platform.startswith("linux"):
            raise ValueError(f"a unix socket has an abstract name on Linux only: {self.path!r}")
        # Whole, for the program may change its folder before it closes this.
        self._file = "" if abstract else os.path.abspath(self.path)
        self._own: tuple[int, ...] | None = None  # device and inode
        self._pid = os.getpid()
        self._lock = threading.RLock()

        try:
            with _locked(self._file):
                self.sock = self._listening(backlog)
        except BaseException:
            self._remove()
            raise

    def _listening(self, backlog: int) -> socket.socket:
        def listen(sock: socket.socket, address: Address) -> None:
            try:
                sock.bind(address)
                if self._file:
                    self._own = _identity(os.lstat(address))[:2]
            except BaseException:
                if self._file and sock.getsockname():  # it is bound: the file is ours
                    with contextlib.suppress(OSError):
                        os.unlink(address)
                raise
            sock.listen(backlog)

        what = f"cannot listen on {shown(self.path)}"
        for attempt in range(LISTEN_ATTEMPTS):
            try:
                return open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self.path, listen)
            except OSError as exc:
                if not self._file or exc.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS - 1:
                    raise describe_error(exc, what) from None
            try:
                _make_way(self.path)
            except OSError as exc:
                raise describe_error(exc, what) from None
        raise AssertionError("unreachable")

    def hide(self) -> None:
        """Remove the file, if it is still this socket's and this is the process that made it."""
        if os.getpid() == self._pid:  # in a forked child the lock may be locked for ever
            with self._lock:
                self._remove()

    def close(self) -> None:
        """Remove the file as hide() does, and close the socket."""
        # Removed before the socket is closed: until then nobody else's file can have the number of its inode.
        self.hide()
        self.sock.close()

    def _remove(self) -> None:
        own, self._own = self._own, None
        # Gone, or no longer ours to remove, it is no error: what stays there is a stale socket.
        with contextlib.suppress(OSError):
            if own and _identity(os.lstat(self._file))[:2] == own:
                os.unlink(self._file)


def _make_way(path: str) -> None:
    """Remove the socket of a server that is gone, or wait a little; OSError when anything else is in the way."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "a device")
        raise OSError(errno.EEXIST, f"it is {kind}, not a socket")
    if _is_listened_on(path):
        raise OSError(errno.EADDRINUSE, "another server is listening there")
    if 0 <= time() - found.st_mtime < GRACE:  # of one that takes no lock, and is about to listen
        sleep(GRACE)
        return
    with contextlib.suppress(FileNotFoundError):
        if _identity(os.lstat(path)) != _identity(found):
            return  # of a server that takes no lock
        try:
            os.unlink(path)
        except PermissionError as exc:
            raise describe_error(exc, "the socket of a server that is gone cannot be removed") from None


def _locked(file: str) -> contextlib.AbstractContextManager[object]:
    """Keep other servers from binding and removing sockets in the folder of a file; of "", there is nothing to do.

    Several may find the same stale socket, and one would remove the file that another has just bound. Where there is no
    lock to be had, or whoever has it keeps it, it goes without: a lock must not keep a server out.
    """
    if file:
        with contextlib.suppress(OSError):  # a folder that may be written to and not read, a file system without locks
            lock = FolderLock(os.path.dirname(file))
            until = monotonic() + LOCK_PATIENCE
            while not lock.take() and monotonic() < until:
                sleep(LOCK_PATIENCE / 100)
            return lock
    return contextlib.nullcontext()


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    """Device, inode, and the time too: a file system gives the number of a removed file to the next one."""
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False  # macOS refuses also when the queue is full
        except BlockingIOError:
            return True  # the queue is full
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:  # a socket of another type, in use
                raise
    return True


def passed_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Give the sockets that systemd has passed to this process (sd_listen_fds(3)), the caller's to close; or ``[]``.

    They are non-blocking and close-on-exec, in the order of their descriptors: stream sockets that listen, TCP or
    unix, and datagram sockets, which their ``type`` tells. The file of a unix socket is systemd's: it stays. The
    variables are removed from ``environ`` in any case, so that no child takes the sockets for its own.

    ``ValueError`` for a variable that is not a number, ``OSError`` naming the descriptor that is something else; those
    before it are closed then, and it is left as it is: it may be anybody's.
    """
    pid, count, *_ = [environ.pop(name, None) for name in PASSED_VARIABLES]
    if pid is None or count is None or _number("LISTEN_PID", pid) != os.getpid():
        return []
    sockets: list[socket.socket] = []
    try:
        for fd in range(FIRST_PASSED, FIRST_PASSED + _number("LISTEN_FDS", count)):
            sockets.append(_passed(fd))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _passed(fd: int) -> socket.socket:
    """Take over a passed descriptor; the number of the error is what accept() would give."""
    what = f"LISTEN_FDS: descriptor {fd} is not"
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise OSError(exc.errno, f"{what} {'open' if exc.errno == errno.EBADF else 'a socket'}") from None
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise OSError(errno.EAFNOSUPPORT, f"{what} a TCP, UDP or unix socket")
        if sock.type != socket.SOCK_DGRAM:
            if sock.type != socket.SOCK_STREAM:
                raise OSError(errno.EOPNOTSUPP, f"{what} a listening stream socket")
            if not _listens(sock):
                raise OSError(errno.EINVAL, f"{what} a listening stream socket")
        sock.set_inheritable(False)
        sock.setblocking(False)
    except BaseException:
        sock.detach()
        raise
    return sock


def _listens(sock: socket.socket) -> bool:
    """Tell whether a stream socket listens; True where this cannot be asked for."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (AttributeError, OSError):
        return True


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name}: not a number of at most 9 digits: {text!r}")
    return int(text)


def _address(sock: socket.socket) -> tuple[str, int] | str:
    """Give (host, port), or the path of a unix socket."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return os.fsdecode(name)
    return name[0], name[1]

"""What Peer and Proxy have in common: a listening socket, a thread that accepts, a thread for each client, the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

from rioecho.testing._ending import Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

#: The largest read, and the largest write, in bytes.
CHUNK = 1 << 16
#: Seconds within which a thread ends after close(), which has ended its waits.
SECONDS = 10.0
#: The longest wait, in seconds, for the acknowledgement of what was sent before a reset.
PATIENCE = 1.0
#: The age in seconds that a connection reaches before it is reset. A client's connect() with a timeout fails, although
#: it is connected, if the reset comes before the call has returned.
AGE = 0.1


class Service:
    """A server on a free port of 127.0.0.1, or on a unix socket in a directory of its own."""

    def __init__(self, *, unix: bool = False) -> None:
        if not isinstance(unix, bool):
            raise TypeError("unix must be True or False: the path of the socket is chosen here; it is the .address")
        self._unix = unix
        #: Held while a client is accepted and while one is received from, so that what has arrived can be told from
        #: what has been taken.
        self._lock = threading.RLock()
        self._closing = threading.RLock()  # a signal handler may call close() during close()
        self._ending: Ending | None = None
        self._clients = 0
        self._threads: list[threading.Thread] = []
        self._opened = contextlib.ExitStack()
        self._address: Any = None
        self._closed = False

    def start(self) -> Self:
        """Listen, and serve clients in threads. Return the object itself. It starts once.

        Raises ``RuntimeError`` if it has been started or closed before; ``OSError`` if it cannot listen.
        """
        if self._ending is not None or self._closed:
            raise RuntimeError(f"this {type(self).__name__} has been started or closed before; create another one")
        try:
            self._ending = Ending()
            self._opened.callback(self._ending.close)
            self._listener = self._opened.enter_context(self._listen())
            self._listener.setblocking(False)
            self._address = self._listener.getsockname()
            accepting = threading.Thread(target=self._accept, name=f"rioecho {type(self).__name__}", daemon=True)
            accepting.start()
            self._threads.append(accepting)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all conversations, and release threads and descriptors. Closing again does nothing."""
        with self._closing:
            self._closed = True
            if self._ending is not None:
                self._ending.request()
            for thread in self._threads:  # the first accepts: it adds no other once it has ended
                thread.join(SECONDS)
                if thread.is_alive():
                    raise RuntimeError(f"the thread {thread.name!r} does not end")
            self._opened.close()

    @property
    def address(self) -> Any:
        """The ``(host, port)`` to connect to, or the path of the unix socket."""
        if self._address is None:
            raise RuntimeError(f"this {type(self).__name__} has not been started")
        return self._address

    @property
    def host(self) -> str:
        """The address without the port: ``127.0.0.1``. A unix socket has none (``AttributeError``)."""
        return str(self._tcp_address()[0])

    @property
    def port(self) -> int:
        """The port. A unix socket has none (``AttributeError``)."""
        return int(self._tcp_address()[1])

    def _tcp_address(self) -> Any:
        if self._unix:
            raise AttributeError("a unix socket has no host and no port; use .address, its path")
        return self.address

    def _listen(self) -> socket.socket:
        if not self._unix:
            return socket.create_server(("127.0.0.1", 0))
        # Not pytest's tmp_path, which may be longer than the path of a unix socket.
        folder = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="rioecho-"))
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(os.path.join(folder, "socket"))
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        return listener

    def _accept(self) -> None:
        assert self._ending is not None  # noqa: S101 - for type checkers
        while True:
            self._ending.poll({self._listener.fileno(): select.POLLIN})
            ended = self._ending.requested  # before the queue is found empty: who connected before the end is served
            try:
                with self._lock:
                    sock, _ = self._listener.accept()
                    sock.setblocking(False)
                    self._clients += 1
                    self._begin(sock, self._clients)
            except BlockingIOError:
                if ended:
                    return
            except (OSError, RuntimeError):  # the client has gone, or there is no descriptor or thread left
                if not self._ending.sleep(0.01):
                    return

    def _begin(self, sock: socket.socket, number: int) -> None:
        """Serve a client, counted from 1, in a thread. Called with the lock held."""
        raise NotImplementedError

    def _run(self, call: Any, sock: socket.socket, number: int) -> None:
        """Call a function in a thread, or close the socket if there is no thread to be had."""
        thread = threading.Thread(target=call, name=f"rioecho {type(self).__name__} client {number}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            sock.close()
            raise
        self._threads.append(thread)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from rioecho._server.loopcall import call_in_thread  # it imports asyncio

        await call_in_thread(self.close)


def reset(sock: socket.socket, ending: Ending, accepted: float) -> None:
    """Close a connection, accepted at that time, with a reset, after what was sent has been acknowledged.

    The reset would throw away what is still to be sent. A unix socket is closed: it has no reset, but its peer gets
    ECONNRESET if something is unread.
    """
    if sock.family != socket.AF_UNIX:
        ending.sleep(accepted + AGE - time.monotonic())
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(OSError):
            while sys.platform == "linux" and struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]:
                if time.monotonic() > deadline or not ending.sleep(0.001):
                    break
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

"""An EventLoop in a thread of the test, and its clients."""

import contextlib
import os
import queue
import select
import socket
import time

from rioecho._server.eventloop import EventLoop
from rioecho._server.handling import Handling
from support.peers import SECONDS, Running

CHUNK = 65_536  # maximum number of bytes that the loop receives at once
BULK = 262_144  # the same with raw framing, where it splices


def until(condition):
    """Wait until ``condition()`` is true, by polling."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting for a condition"
        os.sched_yield()


def nothing_comes(sock, seconds=0.02):
    return not select.select([sock], [], [], seconds)[0]


def tcp_pair(room=None):
    """Return the client's and the server's end of a TCP connection. ``room``: size of the client's receive buffer."""
    far = socket.socket()
    if room is not None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return far, near


class Loop:
    """An event loop. The block runs it; leaving the block closes the clients, waits for its end and closes it.

    ``closings`` lists the arguments of the calls of on_closed, and ``closed_then`` the count of closed connections at
    each call, which is the same for connections closed in one turn. ``next_closing()`` waits for the next call.
    ``handler``: a function of the lines received, or None for an echo.
    """

    def __init__(
        self,
        framing="line",
        *,
        poller=None,
        idle=None,
        max_line=1 << 20,
        drain=SECONDS,
        on_line=None,
        memory=None,
        handler=None,
    ):
        self.on_closed = self._on_closed  # what is called; to be put into its place before the end
        self.closings = []
        self.closed_then = []
        self._closed = queue.SimpleQueue()
        self._clients = []
        self._stop, self._stop_here = os.pipe()
        self.loop = EventLoop(
            framing,
            idle_timeout=idle,
            max_line=max_line,
            drain_timeout=drain,
            stop_fd=self._stop,
            on_closed=lambda *closing: self.on_closed(*closing),
            on_line=on_line,
            memory=memory,
            handling=handler and Handling(handler, raw=framing == "raw", max_line=max_line, write_limit=1 << 20),
            poller=poller,
        )

    def _on_closed(self, *closing):
        self.closings.append(closing)
        self.closed_then.append(self.counts()["closed"])
        self._closed.put(closing)

    def next_closing(self):
        return self._closed.get(timeout=SECONDS)

    def client(self, peer=None, *, kind="unix", small=False):
        """Return the client's end of a connection that the loop has adopted. ``small``: with small kernel buffers."""
        far, near = socket.socketpair() if kind == "unix" else tcp_pair()
        if small:
            for sock in (far, near):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096 if kind == "unix" else 32_768)
        far.settimeout(SECONDS)
        self._clients.append(far)
        try:
            self.loop.adopt(near.fileno(), peer)
        except BaseException:
            near.close()
            raise
        near.detach()
        return far

    def stop(self):
        os.write(self._stop_here, b"s")

    def counts(self):
        return self.loop.counts.now()

    def start(self):
        self._running = Running(self.loop.run)

    def finish(self):
        """Tell the loop that no more connections follow, and wait until run() has returned."""
        self.loop.no_more()
        self._running.result()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        with contextlib.ExitStack() as stack:
            for fd in (self._stop, self._stop_here):
                stack.callback(os.close, fd)
            stack.callback(self.loop.close)
            for client in self._clients:
                client.close()
            self.finish()

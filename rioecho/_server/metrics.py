"""The metrics over HTTP: the counts in the OpenMetrics format at /metrics, and the health of the server at /healthz.

The package prometheus-client, which formats the counts, is imported only here and only when metrics are asked for.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import select
import socket
import threading
from time import sleep

from rioecho._core.addresses import parse_place
from rioecho._server.listeners import host_and_port, listen_sockets
from rioecho._server.notify import WakePipe
from rioecho._server.tasks import Task, WaitGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

log = logging.getLogger("rioecho.server")

#: Seconds in which a client has to send each part of its request.
REQUEST_TIMEOUT = 10.0
#: Maximum number of requests at once: one more cuts off the oldest. So clients that send nothing take neither the
#: descriptors and threads of the echo nor the place of others.
REQUESTS = 16
#: Pause of accepting in seconds while the system has no descriptor, thread or memory left.
PAUSE = 0.1
#: Seconds that requests have to end in after stop().
LAST = 1.0
#: The number that is not a count, and the descriptions of all.
GAUGE = "active"
DESCRIPTIONS = {
    "accepted": "Connections accepted.",
    "active": "Connections being served.",
    "refused": "Connections closed unserved.",
    "closed": "Connections closed.",
    "errors": "Connections closed because of an error.",
    "bytes_in": "Bytes received.",
    "bytes_out": "Bytes sent.",
    "lines": "Whole lines received.",
    "datagrams": "Datagrams answered.",
    "dropped": "Datagrams dropped.",
}


class Metrics:
    """Serves the counts that ``stats()`` returns, in threads of its own. ``is_healthy()`` is the answer of /healthz.

    Listens at once, on every address of the host of ``place`` (see ``listen_sockets``). Raises ``ImportError`` if
    prometheus-client is not installed, and ``OSError``, which names the address, if it cannot listen.
    """

    def __init__(
        self, place: int | str | tuple[str, int], stats: Callable[[], Mapping[str, int]], is_healthy: Callable[[], bool]
    ) -> None:
        host, port = parse_place(place)
        render = _renderer(stats)
        self._handler = type(
            "Handler", (_Handler,), {"render": staticmethod(render), "is_healthy": staticmethod(is_healthy)}
        )
        self._pid = os.getpid()
        self._threads = WaitGroup()
        self._ending = False
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []  # of the requests in progress, the oldest first
        self._end = WakePipe()
        try:
            self._listeners = listen_sockets([host], port, purpose=" (metrics)")
        except BaseException:
            self._end.close()
            raise
        self._by_fd = {listener.fileno(): listener for listener in self._listeners}
        self._ready = select.poll()
        for fd in (self._end.fd, *self._by_fd):
            self._ready.register(fd, select.POLLIN)
        for listener in self._listeners:
            listener.setblocking(False)
        #: The first ``(host, port)`` that it listens on.
        self.address = host_and_port(self._listeners[0])
        host, port = self.address
        #: The URL there.
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def start(self) -> None:
        """Start serving. Raises ``RuntimeError`` or ``MemoryError`` if the system has no thread left."""
        Task(self._run, name="rioecho metrics", group=self._threads).begin()

    def stop(self) -> None:
        """Stop serving and wait until that is done. May be called again, and without ``start()``.

        In a forked child this does nothing: the threads are the parent's.
        """
        if os.getpid() != self._pid:
            return
        self._ending = True
        self._end.wake()
        self._threads.close()
        self._threads.wait(LAST)

    def close(self) -> None:
        """Close the descriptors. Call ``stop()`` first."""
        for listener in self._listeners:
            listener.close()
        self._end.close()

    def _run(self) -> None:
        while not self._ending:
            try:
                for fd, _ in self._ready.poll():
                    if fd in self._by_fd:
                        self._accept_from(self._by_fd[fd])
            except Exception as error:  # no descriptor, thread or memory: clients wait in the listen queue
                log.debug("metrics: %s", error)
                sleep(PAUSE)
        with self._lock:
            for client in self._clients:
                _end_input(client)

    def _accept_from(self, listener: socket.socket) -> None:
        """Accept a connection and answer it in a thread."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client has disconnected
            return
        with self._lock:
            self._clients.append(client)
            for oldest in self._clients[:-REQUESTS]:
                _end_input(oldest)
        try:
            Task(self._answer, client, address, name="rioecho metrics request", group=self._threads).begin()
        except BaseException:
            self._forget(client)
            raise

    def _answer(self, client: socket.socket, address: Any) -> None:
        try:
            self._handler(client, address, None)
        except Exception as error:  # of the connection, for one
            log.debug("metrics: a request has failed: %s", error)
        finally:
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        with self._lock:
            self._clients.remove(client)
            client.close()


def _end_input(client: socket.socket) -> None:
    """End the input of a request, whose thread then ends; an answer still goes out."""
    with contextlib.suppress(OSError):  # disconnected
        client.shutdown(socket.SHUT_RD)


class _Collector:
    """What prometheus-client calls for the counts: ``gauge`` and ``counter`` are its classes."""

    def __init__(self, stats: Callable[[], Mapping[str, int]], gauge: Any, counter: Any) -> None:
        self._stats, self._gauge, self._counter = stats, gauge, counter

    def collect(self) -> Iterator[Any]:
        for name, n in self._stats().items():
            family = self._gauge if name == GAUGE else self._counter
            yield family(f"rioecho_{name}", DESCRIPTIONS.get(name, name), value=n)


def _renderer(stats: Callable[[], Mapping[str, int]]) -> Callable[[], tuple[str, bytes]]:
    """Return a function that returns the content type and the counts in the OpenMetrics format."""
    try:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
        from prometheus_client.registry import CollectorRegistry
    except ImportError as error:
        raise ImportError(
            f"metrics need the package prometheus-client ({error}): pip install 'rioecho[metrics]'"
        ) from None

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats, GaugeMetricFamily, CounterMetricFamily))
    return lambda: (CONTENT_TYPE_LATEST, generate_latest(registry))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server_version = "rioecho"
    sys_version = ""
    timeout = REQUEST_TIMEOUT
    render: Callable[[], tuple[str, bytes]]
    is_healthy: Callable[[], bool]

    def do_GET(self) -> None:
        kind, status = "text/plain; charset=utf-8", 200
        path = self.path.partition("?")[0]
        if path == "/metrics":
            kind, body = self.render()
        elif path == "/healthz":
            status, body = (200, b"ok\n") if self.is_healthy() else (503, b"stopping\n")
        else:
            status, body = 404, b"only /metrics and /healthz are here\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        with contextlib.suppress(BaseException):
            log.debug("metrics: " + format, *args)

"""The metrics over HTTP: the counts in the OpenMetrics format at /metrics, and the health of the server at /healthz.

The package prometheus-client, which formats the counts, is imported only here and only when metrics are asked for.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import select
import socket
import socketserver

from rioecho._core.addresses import describe_error, look_up, parse_place, shown
from rioecho._server.notify import WakePipe
from rioecho._server.tasks import Task, WaitGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

log = logging.getLogger("rioecho.server")

#: Seconds in which a client has to send its request.
REQUEST_TIMEOUT = 10.0
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
    """Serves the counts that ``stats()`` returns, in a thread of its own. ``is_healthy()`` is the answer of /healthz.

    Listens at once. Raises ``ImportError`` if prometheus-client is not installed, and ``OSError``, which names the
    address, if it cannot listen.
    """

    def __init__(
        self, place: int | str | tuple[str, int], stats: Callable[[], Mapping[str, int]], is_healthy: Callable[[], bool]
    ) -> None:
        host, port = parse_place(place)
        render = _renderer(stats)
        handler = type("Handler", (_Handler,), {"render": staticmethod(render), "is_healthy": staticmethod(is_healthy)})
        what = f"cannot listen on {shown(host)} port {port} (metrics)"
        wanted = None if host == "*" else host
        family, _, _, _, address = look_up(wanted, port, socket.AI_PASSIVE, what)[0]
        try:
            self._server = _Server(family, address, handler)
        except OSError as error:
            raise describe_error(error, what) from None
        self._end = WakePipe()
        self._threads = WaitGroup()
        #: The ``(host, port)`` that it listens on.
        self.address: tuple[str, int] = self._server.socket.getsockname()[:2]

    def start(self) -> None:
        """Start serving. Raises ``RuntimeError`` or ``MemoryError`` if the system has no thread left."""
        Task(self._run, name="rioecho metrics", group=self._threads).begin()

    def stop(self) -> None:
        """Stop serving and wait until that is done. May be called again, and without ``start()``."""
        self._end.wake()
        self._threads.close()
        self._threads.wait()

    def close(self) -> None:
        """Close the descriptors. Call ``stop()`` first."""
        self._server.server_close()
        self._end.close()

    def _run(self) -> None:
        ready = select.poll()
        ready.register(self._end.fd, select.POLLIN)
        ready.register(self._server.socket, select.POLLIN)
        while self._end.fd not in [fd for fd, _ in ready.poll()]:
            try:
                self._server.handle_request()
            except Exception as error:  # no thread or no memory: the client tries again
                log.debug("metrics: %s", error)


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


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    timeout = 0  # of handle_request(), which is called when a client has come

    def __init__(self, family: int, address: Any, handler: type[_Handler]) -> None:
        self.address_family = family
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6 and self.server_address[0] != "::":
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's looks up the name of the address

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("metrics: a request has failed", exc_info=True)


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

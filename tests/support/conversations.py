"""Fixtures for tests of the standard library's clients and servers: makefile, a server, a certificate."""

import contextlib
import shutil
import socket
import socketserver
import ssl
import sys
import threading

import pytest

import rioecho
from support import certificates

LONG = 20.0  # timeout in seconds; expires only if something is broken


@pytest.fixture(autouse=True, params=["rioecho", "stdlib"])
def files_of(request, monkeypatch):
    """Run the test with rioecho's makefile and with the standard library's.

    A failure with both is not a fault of rioecho.
    """
    if request.param == "rioecho":
        monkeypatch.setattr(socket.socket, "makefile", rioecho.makefile)
    return request.param


class Server(socketserver.ThreadingTCPServer):
    """A server on a free loopback port. ``errors`` has its handlers' exceptions; ``tls`` is an SSLContext or None."""

    daemon_threads = False  # closing the server waits for its threads

    def __init__(self, handler, tls=None, **attributes):
        self.errors = []
        self.tls = tls
        self.starttls = None
        vars(self).update(attributes)
        super().__init__(("127.0.0.1", 0), handler)

    def get_request(self):
        sock, address = super().get_request()
        sock.settimeout(LONG)
        if self.tls:  # the handler's first read does the handshake; here it would block the accept loop
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, request, client_address):
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client may disconnect in the middle of data that it rejects
            self.errors.append(error)

    @property
    def port(self):
        return self.server_address[1]


@contextlib.contextmanager
def serving(handler, server_class=Server, **attributes):
    """Run a server with the attributes in a thread and yield it. At the end, stop it and raise its first error."""
    server = server_class(handler, **attributes)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    try:
        with server:
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join(LONG)
    except BaseException as error:
        for each in server.errors:
            error.add_note(f"error in the server: {each!r}")
        raise
    if server.errors:
        raise server.errors[0]


def dial(port):
    """Connect to a port. Close the connection before the end of ``serving``, which waits for its handler."""
    return socket.create_connection(("127.0.0.1", port), timeout=LONG)


def receive(wire, n):
    """Receive exactly n bytes from a Wire of delivery.py."""
    data = b""
    while len(data) < n:
        assert wire.readable(LONG), f"received only {data!r}"
        data += wire.take(n - len(data))
        assert data, "end of input"
    return data


@pytest.fixture(scope="session")
def contexts(tmp_path_factory):
    """Return a TLS context for the server and one for a client that trusts it, with a certificate made for this run."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl command, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = certificates.make(folder)
    server, _ = certificates.contexts(certificate, key)
    server.num_tickets = 0  # a client that only writes would close with unread tickets, which causes a reset
    return server, ssl.create_default_context(cafile=certificate)

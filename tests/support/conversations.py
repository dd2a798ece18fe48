"""What conversations between the standard library's clients and servers need: whose files, a server, a certificate."""

import contextlib
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading

import pytest

import rioecho

LONG = 20.0  # seconds, for what does not happen unless something is broken


@pytest.fixture(autouse=True, params=["rioecho", "stdlib"])
def files_of(request, monkeypatch):
    """Have every socket file made by rioecho, or as ever: what fails in both ways is not for rioecho to mend."""
    if request.param == "rioecho":
        monkeypatch.setattr(socket.socket, "makefile", rioecho.makefile)
    return request.param


class Server(socketserver.ThreadingTCPServer):
    """A server on a free port of the loopback interface that keeps what its handlers raise; over TLS with a context."""

    daemon_threads = False  # so that closing the server waits for them

    def __init__(self, handler, tls=None, **attributes):
        self.errors = []
        self.tls = tls
        self.starttls = None
        vars(self).update(attributes)
        super().__init__(("127.0.0.1", 0), handler)

    def get_request(self):
        sock, address = super().get_request()
        sock.settimeout(LONG)
        if self.tls:  # the handshake is the handler's, in its first read: here it would hold up the accepting
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, request, client_address):
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client may leave in the middle of what it refuses
            self.errors.append(error)

    @property
    def port(self):
        return self.server_address[1]


@contextlib.contextmanager
def serving(handler, server_class=Server, **attributes):
    """Serve in a thread; the server, with the attributes, has ended after the block, and an error of it is raised."""
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
            error.add_note(f"the server met {each!r}")
        raise
    if server.errors:
        raise server.errors[0]


def dial(port):
    """Give a connection to a port. It must end before the server's block, which waits for what serves it."""
    return socket.create_connection(("127.0.0.1", port), timeout=LONG)


def taken(wire, n):
    """N bytes that were sent over a wire of delivery.py."""
    data = b""
    while len(data) < n:
        assert wire.readable(LONG), f"only {data!r} came"
        data += wire.take(n - len(data))
        assert data, "the end came instead"
    return data


CERTIFICATE = """
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = localhost
[extensions]
basicConstraints = critical, CA:true
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


@pytest.fixture(scope="session")
def contexts(tmp_path_factory):
    """The server's TLS context and that of a client which trusts it, with a certificate made for this run."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    config, key, certificate = folder / "config", folder / "key.pem", folder / "certificate.pem"
    config.write_text(CERTIFICATE)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", config]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    server.num_tickets = 0  # a client that only writes would close over the unread tickets, which is a reset
    return server, ssl.create_default_context(cafile=certificate)

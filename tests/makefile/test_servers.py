"""socketserver's handlers and XML-RPC work with rioecho.makefile in place of socket.makefile."""

import socket
import socketserver
import threading
import xmlrpc.client
import xmlrpc.server

import pytest

from support.conversations import LONG, Server, dial, files_of, serving  # noqa: F401, a fixture
from support.tiny_servers import BIG

# ---- XML-RPC


class XmlRpcServer(Server, xmlrpc.server.SimpleXMLRPCDispatcher):
    logRequests = False  # noqa: N815, the name is SimpleXMLRPCRequestHandler's

    def __init__(self, handler):
        xmlrpc.server.SimpleXMLRPCDispatcher.__init__(self, use_builtin_types=True)
        Server.__init__(self, handler)
        self.register_function(lambda value: value, "echo")
        self.register_multicall_functions()


class BoundedTransport(xmlrpc.client.Transport):
    def make_connection(self, host):
        connection = super().make_connection(host)
        connection.timeout = LONG
        return connection


@pytest.mark.long
def test_xmlrpc_calls_return_what_they_were_given():
    with serving(xmlrpc.server.SimpleXMLRPCRequestHandler, XmlRpcServer) as server:
        url, transport = f"http://127.0.0.1:{server.port}/RPC2", BoundedTransport(use_builtin_types=True)
        with xmlrpc.client.ServerProxy(url, transport) as proxy:
            for value in (1, "text", BIG, [{"a": 1.5}] * 1000):  # the larger answers are compressed
                assert proxy.echo(value) == value
            with pytest.raises(xmlrpc.client.Fault, match="not supported"):
                proxy.nothing()
            calls = xmlrpc.client.MultiCall(proxy)
            for number in range(50):
                calls.echo(number)
            assert list(calls()) == list(range(50))


# ---- socketserver


class EchoHandler(socketserver.StreamRequestHandler):
    timeout = LONG
    disable_nagle_algorithm = True

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
            self.wfile.flush()


@pytest.mark.parametrize("wbufsize", [-1, 0, 1, 64])
@pytest.mark.parametrize("rbufsize", [-1, 0, 1, 7, 65536])
def test_a_stream_request_handler_echoes_lines_with_every_buffer_size(rbufsize, wbufsize):
    handler = type("Handler", (EchoHandler,), {"rbufsize": rbufsize, "wbufsize": wbufsize})
    with serving(handler) as server, dial(server.port) as sock, sock.makefile("rwb") as file:
        for line in (b"\n", b"a line\n", b"x" * 1000 + b"\n", b"the last, without a newline"):
            file.write(line)
            file.flush()
            if not line.endswith(b"\n"):
                sock.shutdown(socket.SHUT_WR)
            assert file.readline() == line
        assert file.readline() == b""


@pytest.mark.long
def test_a_threading_server_serves_many_clients_at_once(background):
    barrier = threading.Barrier(10, timeout=LONG)

    def talk(port):
        with socket.create_connection(("127.0.0.1", port), timeout=LONG) as sock, sock.makefile("rwb") as file:
            for number in range(200):
                file.write(b"%d\n" % number)
                file.flush()
                assert file.readline() == b"%d\n" % number
                if number % 50 == 0:
                    barrier.wait()

    with serving(EchoHandler) as server:
        for thread in [background(talk, server.port) for _ in range(10)]:
            thread.join(LONG)


def test_output_that_a_handler_leaves_in_the_buffer_is_sent_at_its_end():
    class Handler(socketserver.StreamRequestHandler):
        wbufsize = -1

        def handle(self):
            self.wfile.write(b"unflushed")

    with serving(Handler) as server, dial(server.port) as sock, sock.makefile("rb") as file:
        assert file.read() == b"unflushed"

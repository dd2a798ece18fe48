"""The standard library's HTTP client and server work with rioecho.makefile in place of socket.makefile."""

import contextlib
import http.client
import socketserver
import urllib.error
import urllib.request

import pytest

from support.conversations import LONG, dial, files_of, serving  # noqa: F401, a fixture
from support.tiny_servers import BIG, BufferedHttp, Http, pieces


@pytest.fixture(params=[Http, BufferedHttp])
def site(request):
    with serving(request.param) as server:
        yield server


@pytest.fixture
def client(site):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=LONG)) as connection:
        yield connection


def fetch(client, method, path, body=None, **options):
    client.request(method, path, body, **options)
    with client.getresponse() as response:
        assert response.status == 200
        return response.read()


def test_client_and_server_use_the_installed_makefile(client, files_of):  # noqa: F811
    client.request("GET", "/small")
    with client.getresponse() as response:
        names = {type(response.fp).__name__, response.headers["Reader"]}
        assert response.read() == b"small\n"
    assert names == {{"rioecho": "Rio", "stdlib": "BufferedReader"}[files_of]}


@pytest.mark.parametrize("path", ["/big", "/chunked", "/until-close"])
def test_an_http_body_with_any_framing_is_received_whole(client, path):
    assert fetch(client, "GET", path) == BIG


READING = {
    "read(n)": lambda response: iter(lambda: response.read(60_001), b""),
    "read1(n)": lambda response: iter(lambda: response.read1(60_001), b""),
    "peek": lambda response: iter(lambda: response.read(len(response.peek())), b""),
    "readline": lambda response: iter(response.readline, b""),
    "iteration": iter,
    "readinto": lambda response: into_pieces(response),
}


def into_pieces(response):
    buffer = bytearray(100_000)
    while count := response.readinto(buffer):
        yield bytes(buffer[:count])


@pytest.mark.parametrize("reading", READING)
@pytest.mark.parametrize("path", ["/big", "/chunked", "/until-close"])
def test_an_http_body_can_be_read_by_every_method_of_a_response(client, path, reading):
    client.request("GET", path)
    with client.getresponse() as response:
        assert b"".join(READING[reading](response)) == BIG


def test_many_requests_share_an_http_connection(client):
    fetch(client, "GET", "/small")
    sock = client.sock
    for number in range(20):
        body = b"x" * number**4
        assert fetch(client, "POST", "/", body) == body
        assert fetch(client, "GET", "/small") == b"small\n"
        assert fetch(client, "HEAD", "/big") == b""
    assert client.sock is sock


@pytest.mark.parametrize("method", ["whole", "chunked"])
def test_a_large_body_is_sent_and_received(client, method):
    body = BIG if method == "whole" else iter(pieces(BIG))
    assert fetch(client, "POST", "/", body, encode_chunked=method == "chunked") == BIG


def test_a_response_outlives_its_connection(site):
    client = http.client.HTTPConnection("127.0.0.1", site.port, timeout=LONG)
    with contextlib.closing(client):
        client.request("GET", "/until-close")
        response = client.getresponse()
    with response:
        assert response.read() == BIG


def read_answer(file):
    assert file.readline().startswith(b"HTTP/1.1 200")
    length = int(http.client.parse_headers(file)["Content-Length"])
    return file.read(length)


def test_pipelined_http_requests_are_answered_in_order(site):
    with dial(site.port) as sock, sock.makefile("rwb") as file:
        for number in range(100):
            body = b"%d" % number * 50
            file.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        file.write(b"GET /small HTTP/1.1\r\nConnection: close\r\n\r\n")
        file.flush()
        for number in range(100):
            assert read_answer(file) == b"%d" % number * 50
        assert read_answer(file) == b"small\n"
        assert file.read() == b""


def test_an_http_client_can_wait_for_100_continue():
    with serving(Http) as site, dial(site.port) as sock, sock.makefile("rwb") as file:
        file.write(b"POST / HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        file.flush()
        assert file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert file.readline() == b"\r\n"
        file.write(b"body")
        file.flush()
        assert read_answer(file) == b"body"


def test_an_http_client_that_does_not_wait_skips_100_continue(client):
    assert fetch(client, "POST", "/", b"body", headers={"Expect": "100-continue"}) == b"body"


def test_a_truncated_body_is_an_incomplete_read_with_the_bytes_received():
    class Liar(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline() != b"\r\n":
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")

    with (
        serving(Liar) as server,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONG)) as client,
    ):
        client.request("GET", "/")
        with client.getresponse() as response, pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    assert caught.value.partial == b"part"


# ---- urllib


@pytest.mark.parametrize("path", ["big", "chunked", "until-close", "moved"])
def test_urllib_reads_a_page(site, path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{site.port}/{path}", timeout=LONG) as response:
        assert response.read() == (b"small\n" if path == "moved" else BIG)


def test_urllib_posts_and_reads_the_page_of_an_error(site):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{site.port}/", BIG, timeout=LONG) as response:
        assert response.read() == BIG
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        opener.open(f"http://127.0.0.1:{site.port}/nowhere", timeout=LONG)
    with caught.value as page:
        assert b"404" in page.read()

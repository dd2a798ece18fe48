"""The standard library's clients and servers work over TLS with rioecho.makefile in place of socket.makefile."""

import contextlib
import http.client
import imaplib
import poplib
import smtplib
import urllib.request

import pytest

from support.conversations import LONG, contexts, files_of, serving  # noqa: F401, fixtures
from support.tiny_servers import BIG, BufferedHttp, Http, Imap, Pop3, Smtp, pieces

MESSAGE = b"Subject: long\r\n\r\n" + BIG.replace(b"\n", b"\r\n") + b".\r\n"


@pytest.fixture
def server_context(contexts):  # noqa: F811
    return contexts[0]


@pytest.fixture
def client_context(contexts):  # noqa: F811
    return contexts[1]


@pytest.fixture(params=[Http, BufferedHttp])
def site(request, server_context):
    with serving(request.param, tls=server_context) as server:
        yield server


@pytest.mark.long
@pytest.mark.sampled(1)
def test_https_bodies_are_sent_and_received_over_one_connection(site, client_context):
    client = http.client.HTTPSConnection("127.0.0.1", site.port, timeout=LONG, context=client_context)
    with contextlib.closing(client):
        for path, body, answer in [
            ("/big", None, BIG),
            ("/chunked", None, BIG),
            ("/", BIG, BIG),
            ("/", iter(pieces(BIG)), BIG),
            ("/small", None, b"small\n"),
            ("/until-close", None, BIG),
        ]:
            client.request("POST" if body else "GET", path, body, encode_chunked=not isinstance(body, bytes))
            with client.getresponse() as response:
                assert response.read() == answer


@pytest.mark.long
def test_urllib_reads_https_pages(site, client_context):
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=client_context)
    opener = urllib.request.build_opener(*handlers)
    for path in ("big", "chunked", "until-close"):
        with opener.open(f"https://127.0.0.1:{site.port}/{path}", timeout=LONG) as response:
            assert response.read() == BIG


def test_smtplib_continues_over_tls_after_starttls(server_context, client_context):
    with (
        serving(Smtp, messages=[], starttls=server_context) as server,
        smtplib.SMTP("127.0.0.1", server.port, local_hostname="localhost", timeout=LONG) as client,
    ):
        client.sendmail("a@localhost", "b@localhost", MESSAGE)
        assert client.starttls(context=client_context) == (220, b"go ahead")
        client.sendmail("a@localhost", "b@localhost", MESSAGE)
    assert server.messages == [MESSAGE] * 2


def test_smtplib_works_over_tls_from_the_start(server_context, client_context):
    with (
        serving(Smtp, tls=server_context, messages=[]) as server,
        smtplib.SMTP_SSL(
            "127.0.0.1", server.port, local_hostname="localhost", timeout=LONG, context=client_context
        ) as client,
    ):
        client.sendmail("a@localhost", "b@localhost", MESSAGE)
    assert server.messages == [MESSAGE]


def test_poplib_works_over_tls(server_context, client_context):
    with serving(Pop3, tls=server_context, messages=[MESSAGE]) as server:
        client = poplib.POP3_SSL("127.0.0.1", server.port, timeout=LONG, context=client_context)
        with contextlib.closing(client):
            assert b"".join(line + b"\r\n" for line in client.retr(1)[1]) == MESSAGE
            client.quit()


def test_imaplib_works_over_tls(server_context, client_context):
    with (
        serving(Imap, tls=server_context, messages=[MESSAGE]) as server,
        imaplib.IMAP4_SSL("127.0.0.1", server.port, timeout=LONG, ssl_context=client_context) as client,
    ):
        client.login("user", "pass word")
        client.select()
        client.append("INBOX", None, None, MESSAGE)
        assert [part[1] for part in client.fetch("1:*", "(RFC822)")[1][::2]] == [MESSAGE] * 2

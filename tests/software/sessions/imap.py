"""A session with Dovecot through imaplib, plain, with TLS and with STARTTLS."""

import imaplib
import os
import ssl
import time

import pytest

PORT, TLS_PORT = int(os.environ["IMAP_PORT"]), int(os.environ["IMAPS_PORT"])


def context():
    return ssl.create_default_context(cafile=os.environ["IMAP_CERTIFICATE"])


def starttls():
    client = imaplib.IMAP4("localhost", PORT, timeout=30)
    client.starttls(context())
    return client


WAYS = {
    "tcp": lambda: imaplib.IMAP4("localhost", PORT, timeout=30),
    "tls": lambda: imaplib.IMAP4_SSL("localhost", TLS_PORT, ssl_context=context(), timeout=30),
    "starttls": starttls,
}


@pytest.fixture(params=WAYS)
def client(request):
    with WAYS[request.param]() as client:
        assert client.login(f"user-{request.param}", "pw")[0] == "OK"
        client.create("box")
        assert client.select("box")[0] == "OK"
        yield client
        client.close()
        client.delete("box")


def message(size, word="x"):
    text = (word * 75 + "\r\n") * (size // 77)
    return f"From: me\r\nSubject: {size}\r\n\r\n{text}".encode()


def put(client, data):
    assert client.append("box", "", imaplib.Time2Internaldate(time.time()), data)[0] == "OK"


def test_many_commands_share_a_connection(client):
    for _ in range(500):
        assert client.noop()[0] == "OK"


@pytest.mark.parametrize("size", [0, 1000, 64 << 10, 1 << 20, 5_000_000])
def test_a_message_goes_and_comes_back(client, size):
    data = message(size)
    put(client, data)
    status, found = client.fetch("1", "(RFC822)")
    assert status == "OK"
    assert found[0][1] == data


def test_many_messages_are_fetched_by_one_command(client):
    for number in range(100):
        put(client, message(10 * number))
    status, found = client.fetch("1:*", "(FLAGS RFC822 INTERNALDATE)")
    assert status == "OK"
    assert [item[1] for item in found[::2]] == [message(10 * number) for number in range(100)]


def test_messages_are_searched_flagged_and_removed(client):
    for number in range(20):
        put(client, message(1000 * number))
    assert client.search(None, "SUBJECT", "5000")[1] == [b"6 16"]
    assert client.store("1:10", "+FLAGS", "\\Deleted")[0] == "OK"
    assert len(client.expunge()[1]) == 10
    assert client.search(None, "ALL")[1] == [b" ".join(b"%d" % n for n in range(1, 11))]


def test_an_error_leaves_the_connection_usable(client):
    for messages in ("999", "1:*:"):
        with pytest.raises(imaplib.IMAP4.error):
            client.fetch(messages, "(RFC822)")
    assert client.select("no such box")[0] == "NO"
    assert client.select("box")[0] == "OK"

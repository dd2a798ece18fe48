"""A client, and tests of it with rioecho's pytest plugin: ``pytest examples/test_ping.py``."""

import re

import pytest

from rioecho import LineTooLong, connect
from rioecho.testing import drip, expect, garbage, reset, send, stall


def ping(address, timeout=5):
    """Report whether the server answers a ping: the client under test."""
    with connect(address, timeout=timeout, max_line=100) as rio:
        rio.writen(b"PING\r\n")
        return rio.readuntil(b"\r\n") == b"PONG\r\n"


def test_an_answer(peer):
    server = peer(expect(b"PING\r\n"), send(b"PONG\r\n"))
    assert ping(server.address)
    assert server.received == b"PING\r\n"


def test_an_answer_byte_by_byte(peer):
    assert ping(peer(expect(re.compile(rb"\APING\r\n")), drip(b"PONG\r\n", size=1, every=0.01)).address)


def test_no_answer(peer):
    with pytest.raises(TimeoutError):
        ping(peer(expect(b"PING\r\n"), stall(60)).address, timeout=0.1)


def test_no_sense(peer):
    with pytest.raises(LineTooLong):
        ping(peer(garbage(1000, seed=1)).address)


def test_an_end_in_the_middle(peer):
    with pytest.raises(EOFError):
        ping(peer(expect(b"PING\r\n"), send(b"PO")).address)


def test_a_reset_in_the_middle(peer):
    with pytest.raises(ConnectionResetError):
        ping(peer(expect(b"PING\r\n"), send(b"PO"), reset()).address)


def test_small_pieces(peer, proxy):
    server = peer(expect(b"PING\r\n"), send(b"PONG\r\n"))
    assert ping(proxy(server, cut=1, delay=0.01, seed=7).address)


def test_changed_bytes(peer, proxy):
    server = peer(send(b"PONG\r\n"))
    with pytest.raises(EOFError):
        ping(proxy(server, corrupt=1, seed=7).address)

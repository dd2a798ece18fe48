"""The fuzz target of the PROXY header.

The server's answer is compared with that of a second reading of the specification, which knows the whole input and uses
``ipaddress`` (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2).
"""

import ipaddress
import re
import socket
import struct

from fuzz.choices import Choices
from rioecho._server.accepted import source_name
from rioecho._server.blocking import Echo
from support.proxies import SIGNATURE

LINE = 107  # the longest header of version 1
MORE, WRONG = "more", "wrong"
TEXT = re.compile(rb"PROXY (TCP4|TCP6) ([!-~]+) ([!-~]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
UNKNOWN = re.compile(rb"PROXY UNKNOWN( [ -~]*)?")


def reading(data):
    """Return MORE, WRONG, or the length of the header and the name of the address in it, which may be None."""
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return version_2(data)
    return version_1(data)


def version_1(data):
    if data[:6] != b"PROXY "[: len(data)]:
        return WRONG
    line, newline, _ = data[:LINE].partition(b"\r\n")
    if not newline:
        last = line[-1:] == b"\r" and len(data) < LINE  # its LF may be to come
        text = line[:-1] if last else line
        return WRONG if len(data) >= LINE or re.search(rb"[^ -~]", text) else MORE
    if UNKNOWN.fullmatch(line):
        return len(line) + 2, None
    match = TEXT.fullmatch(line)
    if not match:
        return WRONG
    kind = ipaddress.IPv4Address if match[1] == b"TCP4" else ipaddress.IPv6Address
    ports = int(match[4]), int(match[5])
    try:
        source, _ = kind(match[2].decode()), kind(match[3].decode())
    except ValueError:
        return WRONG
    if max(ports) > 65535 or b"%" in line:
        return WRONG
    return len(line) + 2, named(source, ports[0])


def version_2(data):
    if len(data) < 16:
        return MORE
    version, command = data[12] >> 4, data[12] & 15
    family, transport = data[13] >> 4, data[13] & 15
    (length,) = struct.unpack_from("!H", data, 14)
    if version != 2 or command > 1:
        return WRONG
    least = 0
    if command == 1:
        if family > 3 or transport > 2:
            return WRONG
        least = (0, 12, 36, 216)[family] if transport else 0
    if length < least:
        return WRONG
    if len(data) < 16 + length:
        return MORE
    if least == 216:
        return 16 + length, "(unix socket)"
    if least == 36:
        source, port = ipaddress.IPv6Address(data[16:32]), data[48:50]
    elif least == 12:
        source, port = ipaddress.IPv4Address(data[16:20]), data[24:26]
    else:
        return 16 + length, None
    return 16 + length, named(source, int.from_bytes(port, "big"))


def named(source, port):
    """Return the name of an address as inet_ntop(3) writes it."""
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    return f"({socket.inet_ntop(family, source.packed)}, {port})"


class Connection:
    """A connection that begins with a PROXY header. It is echoed in the thread of the test, whose end is ``far``."""

    def __enter__(self):
        self.near, self.far = socket.socketpair()
        self.echo = Echo(self.near, "raw", timeout=0, proxied=True, on_opened=self.opened)
        self.source, self.is_open = None, False
        self.got = b""
        return self

    def __exit__(self, *_):
        self.near.close()
        self.far.close()

    def opened(self, source, first):
        if source is not None:
            self.source = source_name(source)
        self.is_open = True

    def turn(self):
        """Let the server do what it can with what has arrived. Report whether it takes the header for a wrong one."""
        try:
            self.echo.run()
        except BlockingIOError:
            pass
        except ValueError:
            return True
        return False

    def send(self, pieces):
        """Send pieces, each after the server has taken the last one, and the end.

        Returns MORE or WRONG, or else the name of the address.
        """
        for piece in pieces:
            self.far.sendall(piece)
            if self.turn():
                assert not self.is_open
                return WRONG
            self.receive()
        self.far.shutdown(socket.SHUT_WR)
        cut = self.turn()
        self.receive()
        assert cut <= (not self.is_open)
        assert self.is_open or cut or (self.echo.is_unused and not pieces)
        return self.source if self.is_open else MORE

    def receive(self):
        try:
            while True:
                piece = self.far.recv(1 << 18, socket.MSG_DONTWAIT)
                self.got += piece
                if not piece:
                    return
        except BlockingIOError:
            return


def proxy(raw):
    """A PROXY header is taken as the specification says, in whatever pieces it arrives."""
    choices = Choices(raw)
    lengths = [1 + choices.below(256) for _ in range(2)]
    more = choices.of((0, 0, 0, 1, 30, 1000, 65536))
    data = choices.rest()
    if more:
        data = data.ljust(len(data) + more, b"z")
    expected = reading(data)
    rest = b""
    if expected not in (MORE, WRONG):
        rest = data[expected[0] :]
        expected = expected[1]
    pieces, at = [], 0
    while at < len(data):
        # Bytes one by one or in other small pieces for as long as a header without TLVs may be.
        pieces.append(data[at : at + (lengths[len(pieces) % 2] if at < 300 else 20_000)])
        at += len(pieces[-1])
    for way in ([data] if data else []), pieces:
        with Connection() as connection:
            got = connection.send(way)
            assert got == expected, f"{data[:300]!r} in {len(way)} pieces is {got}, not {expected}"
            assert connection.got == rest, f"{data[:300]!r}: {connection.got[:300]!r} came back"

"""PROXY headers, as load balancers send them (HAProxy's specification, section 2)."""

import socket
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX = 0x11, 0x21, 0x31


def version_1(host="192.0.2.7", port=4321):
    kind, to = ("TCP6", "2001:db8::1") if ":" in host else ("TCP4", "198.51.100.1")
    return f"PROXY {kind} {host} {to} {port} 7\r\n".encode()


def version_2(host="192.0.2.7", port=4321, *, more=b""):
    """Return a header with ``more`` bytes of TLVs."""
    v6 = ":" in host
    family = socket.AF_INET6 if v6 else socket.AF_INET
    to = "2001:db8::1" if v6 else "198.51.100.1"
    addresses = socket.inet_pton(family, host) + socket.inet_pton(family, to) + struct.pack("!HH", port, 7)
    return raw_version_2(PROXY, TCP6 if v6 else TCP4, addresses + more)


def raw_version_2(command, family, rest=b""):
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


#: Headers by name, with the peer that the log shows; None: that of the connection.
HEADERS = {
    "v1 TCP4": (version_1(), "(192.0.2.7, 4321)"),
    "v1 TCP6": (version_1("2001:db8::5", 65535), "(2001:db8::5, 65535)"),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN and more": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    "v2 TCP4": (version_2(), "(192.0.2.7, 4321)"),
    "v2 TCP6": (version_2("2001:db8::5", 0), "(2001:db8::5, 0)"),
    "v2 TCP4 with TLVs": (version_2(more=b"\x04\0\x01x" * 40), "(192.0.2.7, 4321)"),
    "v2 unix": (raw_version_2(PROXY, UNIX, b"\0" * 216), "(unix socket)"),
    "v2 UNSPEC": (raw_version_2(PROXY, 0), None),
    "v2 LOCAL": (raw_version_2(LOCAL, 0), None),
    "v2 IPv4 of an unknown transport": (raw_version_2(PROXY, 0x10, b"\1" * 12), None),
    "v2 IPv6 of an unknown transport, without an address": (raw_version_2(PROXY, 0x20), None),
    "v2 LOCAL of a family to be ignored": (raw_version_2(LOCAL, 0xFF), None),
    "v2 LOCAL with TLVs": (raw_version_2(LOCAL, TCP4, b"\x20\0\x09ignored\r\n"), None),
}

#: Byte strings that begin no PROXY header; each is wrong at its last byte.
WRONG = {
    "HTTP": b"G",
    "a line": b"PROXI",
    "lower case": b"p",
    "another protocol": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "another version of TCP": b"PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n",
    "more than TCP4": b"PROXY TCP44 192.0.2.7 198.51.100.1 1 2\r\n",
    "too few words": b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    "too many words": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
    "two blanks": b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
    "a name": b"PROXY TCP4 localhost 198.51.100.1 1 2\r\n",
    "an IPv6 address in TCP4": b"PROXY TCP4 2001:db8::5 198.51.100.1 1 2\r\n",
    "a port that is too large": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
    "a port with a leading zero": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
    "no port": b"PROXY TCP4 192.0.2.7 198.51.100.1  2\r\n",
    "LF alone": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n",
    "CR alone": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\rx",
    "NUL": b"PROXY TCP4 192.0.2.7\0",
    "a line that is too long": b"PROXY UNKNOWN " + b"x" * 93,
    "another signature": SIGNATURE[:-1] + b"X",
    "version 3": SIGNATURE + b"\x31\x11\0\x0c",
    "another command": SIGNATURE + b"\x22\x11\0\x0c",
    "another family": SIGNATURE + b"\x21\x41\0\x0c",
    "another transport": SIGNATURE + b"\x21\x13\0\x0c",
    "too short for IPv4": SIGNATURE + b"\x21\x11\0\x0b",
    "too short for IPv6": SIGNATURE + b"\x21\x21\0\x23",
    "too short for unix": SIGNATURE + b"\x21\x31\0\xd7",
}

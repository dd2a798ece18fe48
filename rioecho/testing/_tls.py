"""A peer's end of a TLS connection, which neither waits nor reads but when it is told to."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

from rioecho.testing._service import CHUNK


class TlsEnd:
    """The server's end of a TLS connection on a non-blocking socket, with those methods of a socket that a peer calls.

    ``SSLSocket.unwrap()`` also reads, after it has sent the close_notify, and drops what the client has sent. Here
    OpenSSL is given what has come by ``recv()`` alone, so its shutdown finds nothing to drop.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._early = bytearray()  # received, and decrypted by shutdown()
        self._unsent = bytearray()  # encrypted
        self._accepted = 0  # bytes of the data of send() that are in _unsent
        self._is_shut = False

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 if it is closed."""
        return self._sock.fileno()

    def handshake(self) -> int:
        """Go on with the handshake. Return the events to wait for before the next call; 0 if it is complete."""
        while True:
            complete = False
            try:
                self._tls.do_handshake()
                complete = True
            except ssl.SSLWantReadError:
                pass
            except OSError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that tells the client why
                raise
            try:
                self._flush()
            except BlockingIOError:
                return select.POLLOUT
            if complete:
                return 0
            try:
                self._fill()
            except BlockingIOError:
                return select.POLLIN

    def recv(self, size: int) -> bytes:
        """Receive up to some bytes; b"" at the end, orderly or not. Raises BlockingIOError if nothing has come."""
        if self._early:
            data = bytes(self._early[:size])
            del self._early[:size]
            return data
        with contextlib.suppress(OSError):  # it waits, or the client has gone: what it sent before can be read
            self._flush()  # an answer of the protocol
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def send(self, data: bytes | memoryview) -> int:
        """Send the data and return its size. After a BlockingIOError, call it with the same data again."""
        if not self._accepted:
            self._accepted = self._tls.write(data)
        self._flush()
        sent, self._accepted = self._accepted, 0
        return sent

    def shutdown(self, how: int) -> None:
        """Send a close_notify, which ends the output whatever ``how`` says. After a BlockingIOError, call it again."""
        if not self._is_shut:
            self._is_shut = True
            with contextlib.suppress(OSError):  # until nothing is left, or the end
                while data := self._tls.read(CHUNK):
                    self._early += data
            with contextlib.suppress(ssl.SSLError):  # SSLWantReadError: the client's has not come
                self._tls.unwrap()
        self._flush()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def detach(self) -> int:
        """Return the descriptor, which is then the caller's."""
        return self._sock.detach()

    def _fill(self) -> None:
        """Take what has come. Raises BlockingIOError if nothing has."""
        data = self._sock.recv(CHUNK)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        """Send what is encrypted. Raises BlockingIOError if there is no room for all."""
        self._unsent += self._outgoing.read()
        while self._unsent:
            del self._unsent[: self._sock.send(self._unsent)]

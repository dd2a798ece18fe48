"""Run by test_twisted.py in a child process: protocols of Twisted on Feed, over a TCP connection.

Usage: ``twisted_programs.py PROGRAM LINES``. A reactor cannot run twice in a process. Prints "done" if all was right.
"""

import random
import sys

from twisted.internet import endpoints, protocol, reactor, task

from rioecho import Feed, LineTooLong

SECONDS = 60
MAX_LINE = 1000


class LineReceiver(protocol.Protocol):
    """What ``twisted.protocols.basic.LineReceiver`` does, on Feed: lines, and bodies of a length in between.

    A line "BODY n" and the n bytes behind it are one message.
    """

    def __init__(self):
        self.feed = Feed(max_line=MAX_LINE)

    def dataReceived(self, data):  # noqa: N802, the name of Twisted's
        self.feed.feed(data)
        self.receive()

    def connectionLost(self, reason=protocol.connectionDone):  # noqa: N802
        self.feed.feed_eof()
        self.ended(self.feed.read())  # complete messages have been received

    def receive(self):
        while True:
            body = b""
            try:
                with self.feed.frame():
                    line = self.feed.readline()
                    if line is not None and line.startswith(b"BODY "):
                        body = self.feed.readexactly(int(line[5:]))
            except LineTooLong:
                self.transport.loseConnection()
                return
            if line is None or body is None:
                return  # what was read of it is held again
            self.received(line, body)

    def received(self, line, body):
        raise NotImplementedError

    def ended(self, rest):
        raise NotImplementedError


def messages(count):
    """Return messages, pairs of a line and a body."""
    chance = random.Random(count)
    made = []
    for i in range(count):
        body = chance.randbytes(chance.choice([0, 1, 2000])) if chance.random() < 0.3 else None
        made.append((b"%d\n" % i, b"") if body is None else (b"BODY %d\n" % len(body), body))
    return made


class Echo(LineReceiver):
    def received(self, line, body):
        self.transport.write(line + body)

    def ended(self, rest):
        end(rest == b"the rest")


class Client(LineReceiver):
    """Sends messages in random pieces, receives their echo, and half-closes after the last."""

    def __init__(self, sent):
        super().__init__()
        self.sent = sent
        self.got = []

    def connectionMade(self):  # noqa: N802
        self.transport.setTcpNoDelay(True)
        data = b"".join(line + body for line, body in self.sent)
        chance = random.Random(1)
        at = 0
        pieces = []
        while at < len(data):
            pieces.append(data[at : at + chance.choice([1, 10, 100, 3000])])
            at += len(pieces[-1])

        def send():
            for n, piece in enumerate(pieces):
                self.transport.write(piece)
                if n % 8 == 0:
                    yield  # the reactor sends them

        task.cooperate(send())

    def received(self, line, body):
        self.got.append((line, body))
        if len(self.got) == len(self.sent):
            self.transport.write(b"the rest")
            self.transport.loseConnection()

    def ended(self, rest):
        end(rest == b"" and self.got == self.sent)


class Flood(Client):
    """Sends a line that is too long; the server ends the connection, and still holds the bytes."""

    def connectionMade(self):  # noqa: N802
        self.transport.write(b"first\n" + b"x" * (MAX_LINE + 1))

    def received(self, line, body):
        self.got.append((line, body))

    def ended(self, rest):
        end(self.got == [(b"first\n", b"")])


class FloodedEcho(LineReceiver):
    def received(self, line, body):
        self.transport.write(line)

    def ended(self, rest):
        end(rest == b"x" * (MAX_LINE + 1))


outcome = []


def end(right):
    """Note whether one of the two protocols has ended as it should; stop after the second."""
    outcome.append(right)
    if len(outcome) == 2:
        reactor.callLater(0, reactor.stop)


def stop():
    outcome.append(False)
    reactor.stop()


def run(server, client):
    def failed(reason):
        reason.printTraceback()
        stop()

    def connect(port):
        point = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        endpoints.connectProtocol(point, client).addErrback(failed)

    listening = endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    listening.listen(protocol.Factory.forProtocol(server)).addCallbacks(connect, failed)
    reactor.callLater(SECONDS, stop)
    reactor.run()
    print("done" if outcome == [True, True] else f"failed: {outcome}, {len(client.got)} messages")


if __name__ == "__main__":
    program, count = sys.argv[1], int(sys.argv[2])
    if program == "echo":
        run(Echo, Client(messages(count)))
    else:
        run(FloodedEcho, Flood([]))

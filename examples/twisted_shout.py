"""A server on Twisted that answers each line in capitals. Usage: ``twisted_shout.py [PORT]``."""

import sys

from twisted.internet import protocol, reactor

from rioecho import Feed, LineTooLong


class Shout(protocol.Protocol):
    def connectionMade(self):  # noqa: N802, a name of Twisted's
        self.feed = Feed(max_line=1000)

    def dataReceived(self, data):  # noqa: N802
        self.feed.feed(data)
        try:
            while (line := self.feed.readline()) is not None:
                self.transport.write(line.upper())
        except LineTooLong:
            self.transport.loseConnection()  # after what was written


def main(port=8000):
    listening = reactor.listenTCP(port, protocol.Factory.forProtocol(Shout), interface="127.0.0.1")
    print("Listening on port", listening.getHost().port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""A chat: what one member says is sent to all others. Usage: ``chat_server.py [PORT]``; members use nc localhost PORT.

The first line of a member is its name. A member that does not read what the others say is disconnected.
"""

import sys

from rioecho import LineServer

members = set()


def tell(others, text):
    for other in others:
        try:
            other.conn.write(text)
        except BlockingIOError:  # more than write_limit bytes wait for it
            other.conn.abort()
        except ConnectionError:  # it has just left
            pass


class Member:
    name = None

    def connection_made(self, conn):
        self.conn = conn
        conn.write(b"Your name?\n")

    def lines_received(self, lines):
        if self.name is None:
            self.name = lines[0].strip()
            tell(members, self.name + b" has come\n")
            members.add(self)
            self.conn.write(b"Here: %b\n" % b", ".join(sorted(member.name for member in members)))
            lines = lines[1:]
        tell(members - {self}, b"".join(self.name + b": " + line for line in lines))

    def connection_lost(self, reason):
        if self in members:
            members.remove(self)
            tell(members, self.name + b" has left\n")


if __name__ == "__main__":
    with LineServer(Member, *sys.argv[1:], max_line=1000, write_limit=64 << 10, idle_timeout=0) as server:
        print("Listening on port", server.addresses[0][1], flush=True)
        server.wait()

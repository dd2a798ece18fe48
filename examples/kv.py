"""A key-value store that speaks enough of Redis for redis-cli and redis-benchmark. Usage: ``kv.py [PORT]``.

A command is a line of words, or an array of strings with lengths: the lines ``*2``, ``$3``, ``GET``, ``$3``, ``key``.
"""

import sys

from rioecho import LineServer

COUNTS = {b"*%d\r\n" % n: n for n in range(1, 100)}  # the first line of most arrays: the number of strings
SIZES = {b"$%d\r\n" % n: n + 2 for n in range(1000)}  # and of most strings: the size with the line end, which is kept
store = {}  # the answer to GET for each key


def bulk(string):
    return b"$%d\r\n%b" % (len(string) - 2, string)


def put(key, string):
    store[key] = b"$%d\r\n%b" % (len(string) - 2, string)
    return b"+OK\r\n"


def increment(key):
    number = int(store.get(key, b"$1\r\n0\r\n").split(b"\r\n")[1]) + 1
    return put(key, b"%d\r\n" % number) and b":%d\r\n" % number


COMMANDS = {
    b"PING\r\n": lambda *string: bulk(*string) if string else b"+PONG\r\n",
    b"ECHO\r\n": bulk,
    b"GET\r\n": lambda key: store.get(key, b"$-1\r\n"),
    b"SET\r\n": put,
    b"MGET\r\n": lambda *keys: b"*%d\r\n" % len(keys) + b"".join(store.get(key, b"$-1\r\n") for key in keys),
    b"MSET\r\n": lambda *pairs: [put(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)].pop(),
    b"INCR\r\n": increment,
    b"DEL\r\n": lambda *keys: b":%d\r\n" % sum(store.pop(key, None) is not None for key in keys),
    b"EXISTS\r\n": lambda *keys: b":%d\r\n" % sum(key in store for key in keys),
    b"COMMAND\r\n": lambda *_: b"*0\r\n",
    b"CONFIG\r\n": lambda _, name: b"*2\r\n%b$0\r\n\r\n" % bulk(name),
    b"": lambda: b"",  # an empty line
}


class Client:
    held = ()  # the lines of a command that has not come whole

    def lines_received(self, lines):
        held, self.held, answers = [*self.held, *lines], (), []
        lines = iter(held)
        try:
            for line in lines:
                left = lines.__length_hint__() + 1
                count = COUNTS.get(line) or (int(line[1:]) if line[:1] == b"*" else 0)
                strings = [] if count else [word + b"\r\n" for word in line.split()] or [b""]
                for _ in range(count):
                    size = SIZES.get(head := next(lines)) or int(head.removeprefix(b"$")) + 2
                    if len(string := next(lines)) != size:
                        parts = bytearray(string)
                        while len(parts) < size:  # it contains newlines
                            parts += next(lines)
                        if len(string := bytes(parts)) != size:
                            raise ValueError("the size of a string is wrong")
                    strings.append(string)
                try:
                    answers.append(COMMANDS[strings[0].upper()](*strings[1:]))
                except (LookupError, TypeError, ValueError):
                    answers.append(b"-ERR unknown command, or wrong arguments\r\n")
        except StopIteration:
            self.held = held[-left:]
            if sum(map(len, self.held)) > 1 << 20:
                raise ValueError("the command is too long") from None
        return answers


if __name__ == "__main__":
    with LineServer(Client, *sys.argv[1:]) as server:
        print("Listening on port", server.addresses[0][1], flush=True)
        server.wait()

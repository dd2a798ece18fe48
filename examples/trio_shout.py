"""A server on trio that answers each line in capitals. Usage: ``trio_shout.py [PORT]``."""

import sys

import trio

from rioecho import Feed, LineTooLong


class LineStream:
    """The lines of a stream of trio. ``readline()`` may be cancelled at any point: no byte is lost."""

    def __init__(self, stream, **options):
        self.stream = stream
        self.feed = Feed(**options)

    async def readline(self):
        """Return the next line; the unterminated last one at the end of the input, then ``b""``."""
        while (line := self.feed.readline()) is None:
            data = await self.stream.receive_some()
            if data:
                self.feed.feed(data)
            else:
                self.feed.feed_eof()
        return line


async def shout(stream):
    lines = LineStream(stream, max_line=1000)
    try:
        while True:
            with trio.move_on_after(60) as waiting:
                line = await lines.readline()
            if waiting.cancelled_caught:
                await stream.send_all(b"STILL THERE?\n")
            elif not line:
                return
            else:
                await stream.send_all(line.upper())
    except (trio.BrokenResourceError, LineTooLong):
        pass  # trio closes the stream


async def main(port=8000):
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    print("Listening on port", listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(shout, listeners)


if __name__ == "__main__":
    trio.run(main, *map(int, sys.argv[1:]))

"""Random sequences of calls on a Feed; every result must be the oracle's, and None where it depends on more bytes."""

from rioecho import Feed
from support.oracle import Oracle
from support.properties import given, st
from support.sequences import BLOCKS, READS, blocks_step, chunks, compare, deterministic, step

feeds = st.tuples(st.just("feed"), chunks)
looks = step({"peek": (), "buffered": (), "has_line": (), "read_buffered": (), "readlines1": ()})
steps = st.lists(feeds | step(READS) | looks | step(BLOCKS), max_size=40)


class Starved(Oracle):
    """An oracle for a Feed: a block in which a read had to wait is undone however it ends."""

    def __init__(self, **options):
        super().__init__(**options)
        self.starved = []

    def begin(self):
        super().begin()
        self.starved.append(False)

    def leave(self, depth, undo):
        super().leave(depth, undo or self.starved[depth])
        del self.starved[depth:]

    def none(self, call):
        assert call() is None
        self.starved = [True] * len(self.starved)


def look(feed, oracle, name):
    data = oracle.data
    if name == "buffered":
        assert feed.buffered == len(data)
    elif name == "has_line":
        assert feed.has_line() == (b"\n" in data)
    elif name == "read_buffered":
        assert feed.read_buffered() == oracle.take(len(data))
    elif name == "peek":
        if data or oracle.ended:
            assert feed.peek() == data
        else:
            oracle.none(feed.peek)
    else:
        compare(oracle, feed.readlines1, lambda: lines(oracle), oracle.none)


def lines(oracle):
    """Return what readlines1() returns: all complete lines within the limit, or the unterminated last one."""
    first = oracle.readline()
    got = [first] if first else []
    while b"\n" in oracle.data[: oracle.max_line]:
        got.append(oracle.readline())
    return got


@deterministic
@given(steps, steps, st.sampled_from([10, 30, 1 << 20]))
def test_any_sequence_of_calls_returns_what_the_oracle_returns(live, ended, max_line):
    feed = Feed(max_line=max_line)
    oracle = Starved(ended=False, max_line=max_line)
    blocks = []
    for part in (live, ended):
        for name, *arguments in part:
            if name == "feed":
                if not oracle.ended:
                    feed.feed(arguments[0])
                    oracle.data += arguments[0]
            elif name in BLOCKS:
                blocks_step(feed, oracle, blocks, name, arguments)
            elif name in READS:
                method = name.split()[0]
                compare(
                    oracle,
                    lambda method=method, arguments=arguments: getattr(feed, method)(*arguments),
                    lambda method=method, arguments=arguments: getattr(oracle, method)(*arguments),
                    oracle.none,
                )
            else:
                look(feed, oracle, name)
            assert feed.buffered == len(oracle.data)
        feed.feed_eof()
        oracle.ended = True
    assert feed.read() == oracle.data

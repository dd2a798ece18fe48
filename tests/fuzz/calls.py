"""The fuzz targets of the reading methods: the buffer, the framing, and a Feed.

Their inputs are sequences of calls and of arriving bytes, which support/agreement.py compares with the oracle.
"""

from contextlib import nullcontext

from fuzz.choices import Choices
from rioecho import Feed, FrameTooLong, IncompleteRead, LineTooLong
from support.agreement import check_feed, check_rio
from support.oracle import Incomplete, Oracle, TooLong

MOST_STEPS = 60  # of one input: a longer one finds nothing more, and takes longer

# ---- arguments


def size(choices):
    """Return a size in bytes, most often a small one."""
    n = choices.below(64)
    return n if n < 48 else (64, 100, 255, 256, 300, 600, 1000, 4096)[n % 8]


def size_or_all(choices):
    return size(choices) - 1


def data(choices):
    """Return bytes: those that follow in the input, which may be repeated."""
    n = choices.below(64)
    return choices.piece(n) if n < 48 else choices.piece(1 + n % 4) * (60 if n < 60 else 700)


def separator(choices):
    """Return a separator, or a tuple of them."""
    n = choices.below(16)
    if n < 8:
        return (b"\n", b"\r\n", b";", b"aab", b"aa", b"\r\n\r\n", b"\n\n", b"\0")[n]
    if n < 12:
        return choices.piece(1 + n % 4) or b"\n"
    return tuple(choices.piece(1 + choices.below(3)) or b"\r" for _ in range(n - 11))


def width(choices):
    return 1 + choices.below(8)


def byte_order(choices):
    return choices.of(("big", "little"))


def depth(choices):
    return -1 - choices.below(4)


def undo(choices):
    return choices.below(2) == 1


#: The steps of support/agreement.py, and how their arguments are made. New ones are added at the end of a table, so
#: that the inputs of the corpus keep their meaning.
COMMON = {
    "feed": (data,),
    "readline": (),
    "readline limit": (size,),
    "read": (size_or_all,),
    "readexactly": (size,),
    "readuntil": (separator,),
    "readuntil limit": (separator, size),
    "readframe": (width, byte_order),
    "skip": (size,),
    "skipline": (),
    "unread": (data,),
    "begin": (),
    "leave": (depth, undo),
}
FEED = COMMON | {"peek": (), "buffered": (), "has_line": (), "read_buffered": (), "readlines1": ()}
RIO = COMMON | {
    "iteration": (),
    "readlines": (size_or_all,),
    "read1": (size_or_all,),
    "readinto": (size,),
    "readinto1": (size,),
    "readlines1": (),
    "peek": (),
    "fill": (size,),
    "has_line": (),
    "read_buffered": (),
}


def steps(choices, table):
    """Return the steps that an input asks for: those before the end of the Feed's or the Rio's input, and after it."""
    names = [*table, "end"]
    parts = [], []
    part = parts[0]
    while choices and len(parts[0]) + len(parts[1]) < MOST_STEPS:
        name = choices.of(names)
        if name == "end":
            part = parts[1]
        else:
            part.append((name, *[argument(choices) for argument in table[name]]))
    return parts


# ---- the targets


def framing(raw):
    """Any sequence of calls on a Rio or a Feed returns what the oracle returns."""
    choices = Choices(raw)
    max_line = choices.of((1 << 20, 10, 30, 1, 600))
    bufsize = choices.of((0, 65536, 1, 2, 7, 64, 4096))
    if bufsize:
        pipe = choices.below(2) == 1
        check_rio(*steps(choices, RIO), bufsize, max_line, pipe)
    else:
        check_feed(*steps(choices, FEED), max_line)


#: Bytes without a period that is a power of two, so that any that are taken from another place are noticed.
PATTERN = bytes(i * i // 7 % 251 for i in range(1 << 19))


def large(choices):
    """Return a size near a power of two, up to 256 KiB."""
    return max((1 << choices.below(19)) + choices.below(9) - 4, 0)


def skipped(choices):
    """Return a size to skip at once: of a larger one, the beginning may be discarded before the rest has come."""
    return min(large(choices), 1 << 16)


def large_data(choices):
    n = large(choices)
    start = 251 * choices.below(256)
    return PATTERN[start : start + n]


#: Steps that move, keep and give back memory, with sizes on both sides of every boundary of it.
MEMORY = {
    "feed": (large_data,),
    "read": (large,),
    "skip": (skipped,),
    "unread": (large_data,),
    "begin": (),
    "leave": (depth, undo),
    "read_buffered": (),
    "peek": (),
    "readline": (),
    "readuntil": (separator,),
    "readframe": (width, byte_order),
}
MEMORY_RIO = MEMORY | {"read1": (large,), "readinto": (large,), "fill": (large,)}


def buffer(raw):
    """The buffer keeps every byte in order, however it grows, moves, and gives memory back."""
    choices = Choices(raw)
    bufsize = choices.of((0, 1, 64, 8192, 65536))
    if bufsize:
        pipe = choices.below(2) == 1
        check_rio(*steps(choices, MEMORY_RIO), bufsize, 1 << 20, pipe)
    else:
        check_feed(*steps(choices, MEMORY), 1 << 20)


#: The calls whose result does not depend on the pieces in which the bytes arrive.
PLANNED = {name: COMMON[name] for name in COMMON if name not in ("feed", "begin", "leave", "unread")}


def feed(raw):
    """The results of a Feed do not depend on the pieces in which the bytes arrive, in blocks of frame() or not."""
    choices = Choices(raw)
    max_line = choices.of((1 << 20, 10, 30, 1, 600))
    lengths = [1 + choices.below(256) for _ in range(3)]
    plan = []  # of blocks of calls; a block of one call needs no frame()
    for _ in range(choices.below(9)):
        calls = [choices.of([*PLANNED]) for _ in range(1 + choices.below(3))]
        plan.append([(name, *[argument(choices) for argument in PLANNED[name]]) for name in calls])
    data = choices.rest()
    whole = Feed(max_line=max_line)
    whole.feed(data)
    whole.feed_eof()
    pieces, at = [], 0
    while at < len(data):
        pieces.append(data[at : at + lengths[len(pieces) % 3]])
        at += len(pieces[-1])
    cut = Feed(max_line=max_line)
    oracle = Oracle(data, max_line=max_line)
    for calls in plan:
        expected = [outcome(oracle, call) for call in calls]
        got = [outcome(whole, call) for call in calls]
        assert got == expected, f"{calls}: {got} instead of {expected}"
        got = in_pieces(cut, calls, pieces)
        assert got == expected, f"{calls}: in pieces {got} instead of {expected}"
    for piece in pieces:
        cut.feed(piece)
    assert cut.read_buffered() == whole.read_buffered() == oracle.data


def outcome(reader, call):
    """Make a call and return what it returns, or what its error means."""
    name, *arguments = call
    try:
        return getattr(reader, name.split()[0])(*arguments)
    except (LineTooLong, FrameTooLong, TooLong):
        return "too long"
    except IncompleteRead as error:
        return "incomplete", error.partial
    except Incomplete as error:
        return "incomplete", error.args[0]


def in_pieces(feed, calls, pieces):
    """Make the calls of a block, again from its beginning after each piece that was missing."""
    while True:
        ended = not pieces
        if ended:
            feed.feed_eof()
        with feed.frame() if len(calls) > 1 else nullcontext():
            got = []
            for call in calls:
                got.append(outcome(feed, call))
                if got[-1] is None and not ended:
                    break
            else:
                return got
        feed.feed(pieces.pop(0))

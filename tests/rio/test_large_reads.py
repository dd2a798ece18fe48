"""Reads of more than the buffer: their cost in memory, and that an interrupted one leaves all bytes to the next."""

import contextlib
import itertools
import os
import platform
import random
import select

import pytest

from rioecho import IncompleteRead, Rio, makefile
from support.procfs import memory, needs_proc

REST = 20  # seconds after which a test fails
LINE = b"the first line\n"
DATA = LINE + random.Random(1).randbytes(90_000).replace(b"\n", b".") + b"\n" + b"last\n"
SIZE = 80_000


def into(rio, size):
    buffer = bytearray(size)
    return bytes(buffer[: rio.readinto(buffer)])


def in_order(rio, size):
    """Read with as many methods as possible until the input ends."""
    yield rio.peek()[:0]
    yield rio.readline(700)
    yield rio.read1(900)
    yield rio.read(size // 2)
    yield into(rio, size // 4)
    yield rio.readline()
    yield from rio


# What a read of SIZE bytes may be, and what may follow it. `None` for a method that needs EOF.
LARGE = {
    "read": lambda rio: rio.read(SIZE),
    "read, huge": lambda rio: rio.read(10**12),
    "readexactly": lambda rio: rio.readexactly(SIZE),
    "readinto": lambda rio: into(rio, SIZE),
    "read to the end": lambda rio: rio.read(),
}
NEXT = {
    "a larger read": lambda rio: rio.read(SIZE + 3000),
    "a smaller read": lambda rio: rio.read(SIZE - 50_000),
    "read(1)": lambda rio: rio.read(1),
    "readinto": lambda rio: into(rio, SIZE + 10),
    "readline": lambda rio: rio.readline(),
    "readuntil": lambda rio: rio.readuntil(b"st\n"),
    "readlines1": lambda rio: b"".join(rio.readlines1()),
    "read1": lambda rio: rio.read1(),
    "fill": lambda rio: rio.read(rio.fill(SIZE)),
    "read_buffered": lambda rio: rio.read_buffered(),
    "many methods": lambda rio: b"".join(in_order(rio, SIZE)),
} | LARGE


@pytest.fixture(params=["timeout", "timeout of 0", "raising handler"])
def interrupted(request, alarm):
    def call(method, rio):
        rio.timeout = {"timeout": 0.001, "timeout of 0": 0}.get(request.param, REST)
        error = {"timeout": TimeoutError, "timeout of 0": BlockingIOError}.get(request.param, alarm.error)
        with pytest.raises(error):
            if request.param == "raising handler":
                alarm(0.002)
            method(rio)
        rio.timeout = REST

    return call


@pytest.mark.sampled(24)
@pytest.mark.parametrize("following", NEXT.values(), ids=NEXT)
@pytest.mark.parametrize("first", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("bufsize", [64, 65536])
def test_what_an_interrupted_large_read_received_is_there_for_any_other(wire, interrupted, first, following, bufsize):
    for received in (len(LINE), 5000, 40_000, 70_000):
        pipe = wire("socketpair")
        rio = Rio(pipe.near, bufsize=bufsize, max_line=None, timeout=REST)
        pipe.feed(DATA[:received])
        assert rio.readline() == LINE
        interrupted(first, rio)
        assert rio.buffered <= received - len(LINE)
        interrupted(first, rio)  # the second attempt continues in the same memory
        pipe.feed(DATA[received:])
        pipe.end()
        answer = following(rio)
        assert LINE + answer + rio.read() == DATA
        pipe.close()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("first", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("bufsize", [64, 65536])
def test_bytes_of_a_large_read_can_be_detached_after_an_interruption(stream, interrupted, first, bufsize):
    rio = Rio(stream.near, bufsize=bufsize)
    stream.feed(DATA[:70_000])
    assert rio.readline() == LINE
    interrupted(first, rio)
    rest = rio.detach()[1]
    while len(rest) < 70_000 - len(LINE):
        rest += os.read(stream.near.fileno(), 1 << 20)
    assert LINE + rest == DATA[:70_000]


@pytest.mark.parametrize("end", [0, 1, 30_000, 40_000, SIZE - 1])
@pytest.mark.parametrize("bufsize", [64, 65536])
def test_a_large_read_is_cut_at_the_end_of_the_input(wire, bufsize, end):
    for call in (LARGE["read"], LARGE["read, huge"], LARGE["readinto"], LARGE["read to the end"]):
        pipe = wire("socketpair")
        rio = Rio(pipe.near, bufsize=bufsize, timeout=REST)
        pipe.feed(DATA[:end])
        pipe.end()
        assert call(rio) == DATA[:end]
        assert call(rio) == b""


@pytest.mark.parametrize("bufsize", [64, 65536])
def test_what_an_incomplete_large_read_received_is_its_partial(stream, bufsize):
    rio = Rio(stream.near, bufsize=bufsize, timeout=REST)
    stream.feed(DATA[:70_000])
    stream.end()
    assert rio.readline() == LINE
    with pytest.raises(IncompleteRead) as caught:
        rio.readexactly(SIZE)
    assert caught.value.partial == DATA[len(LINE) : 70_000]
    assert rio.read() == b""


def test_the_line_behind_a_large_read_is_received_with_it(stream):
    rio = Rio(stream.near, timeout=REST)
    for _ in range(3):
        stream.feed(b"head\n" + b"x" * 70_000 + b"tail\n")
        assert rio.readline() == b"head\n"
        assert rio.read(70_000) == b"x" * 70_000
        assert rio.buffered == 5
        assert rio.readline() == b"tail\n"


def test_a_large_read_with_a_bufsize_of_1_takes_nothing_behind_it(stream):
    rio = Rio(stream.near, bufsize=1, timeout=REST)
    stream.feed(DATA)
    assert rio.readline() == LINE
    assert rio.read(SIZE) == DATA[len(LINE) :][:SIZE]
    assert rio.buffered == 0
    assert stream.near.recv(1 << 20) == DATA[len(LINE) + SIZE :]


def test_results_of_large_reads_are_ordinary_bytes(stream):
    rio = Rio(stream.near, timeout=REST)
    results = []
    for n in (70_000, 65_536, 90_000, 40_000):
        stream.feed(DATA[:n])
        results.append(rio.read(n))
    for result, n in zip(results, (70_000, 65_536, 90_000, 40_000), strict=True):
        assert type(result) is bytes
        assert len(result) == n
        assert hash(result) == hash(DATA[:n])
        assert result == DATA[:n]
        assert result[-1:] + b"!" == DATA[n - 1 : n] + b"!"


@pytest.mark.parametrize("seed", range(20))
def test_random_large_reads_and_interruptions_lose_nothing(wire, seed):
    pipe = wire("socketpair")
    dice = random.Random(seed)
    rio = Rio(pipe.near, bufsize=dice.choice([1, 64, 4096, 65536]), max_line=None, timeout=0)
    data = bytes(itertools.islice(itertools.cycle(DATA), 400_000))
    sent, got = 0, bytearray()
    calls = [
        lambda: rio.read(dice.randrange(120_000)),
        lambda: rio.readexactly(dice.randrange(120_000)),
        lambda: into(rio, dice.randrange(120_000)),
        lambda: rio.readline(dice.randrange(50_000)),
        lambda: rio.read1(dice.randrange(50_000)),
        lambda: rio.peek()[:0],
        lambda: rio.readline(),
    ]
    while sent < len(data):
        if not select.select([rio], [], [], 0)[0]:
            part = data[sent : sent + dice.randrange(1, 50_000)]
            pipe.feed(part)
            sent += len(part)
        with contextlib.suppress(BlockingIOError):
            got += dice.choice(calls)()
    pipe.end()
    rio.timeout = REST
    got += rio.read()
    assert got == data


FAULTS = """if True:
    import resource, socket, sys, threading
    from rioecho import makefile
    near, far = socket.socketpair()
    size, rounds, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    piece = b"head\\n" + bytes(size)

    def send():
        for _ in range(rounds + 3):
            far.sendall(piece)

    threading.Thread(target=send).start()
    file = makefile(near, "rb") if kind == "rio" else near.makefile("rb")
    buffer = bytearray(size)

    def once():
        assert file.readline() == b"head\\n"
        if sys.argv[4] == "read":
            assert len(file.read(size)) == size
        else:
            assert file.readinto(buffer) == size

    for _ in range(3):
        once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        once()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators return memory at other times")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD", "release") != "release", reason="counts of the release build")
@pytest.mark.parametrize("method", ["read", "readinto"])
@pytest.mark.parametrize(("size", "rounds"), [(65_536, 400), (100_000, 400), (1 << 20, 100), (17 << 20, 4)])
def test_a_line_and_a_body_cause_no_more_page_faults_than_the_standard_library(child, size, rounds, method):
    counts = {kind: int(child(FAULTS, str(size), str(rounds), kind, method)) for kind in ("rio", "stdlib")}
    # A margin of half a fault for each round, and of some for the threads.
    assert counts["rio"] <= counts["stdlib"] + rounds / 2 + 100, counts


PEAK = """if True:
    import os, sys, tempfile
    from rioecho import Rio
    size = 64 << 20
    with tempfile.TemporaryFile() as file:
        file.truncate(size)

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

        def reads():
            with open("/proc/self/io") as counts:
                return next(int(line.split()[1]) for line in counts if line.startswith("syscr:"))

        rio = Rio(file.fileno(), max_line=None)
        assert rio.read(5) == bytes(5)
        memory, calls = peak(), reads()
        result = eval(sys.argv[1])
        calls = reads() - calls
        assert len(result) == size - 5
        print((peak() - memory) / size, calls)
"""


@pytest.mark.long
@needs_proc
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory")
@pytest.mark.parametrize("call", ["rio.read(size - 5)", "rio.read(10**12)", "rio.readexactly(size - 5)", "rio.read()"])
def test_a_large_result_is_held_once_and_read_in_few_calls(child, call):
    memory, calls = map(float, child(PEAK, call).split())
    assert memory < (1.1 if platform.libc_ver()[0] == "glibc" else 2.1), "in sizes of the result"
    assert calls < 40


@needs_proc
def test_memory_of_a_long_line_is_returned_while_the_next_one_is_incomplete(stream, background):
    rio = Rio(stream.near, max_line=None, timeout=REST)
    before = memory(os.getpid())
    sending = background(lambda: stream.far.sendall(b"x" * (32 << 20) + b"\nhalf"))
    assert len(rio.readline()) == (32 << 20) + 1
    sending.join()
    stream.feed(b"line\n")
    assert rio.readline() == b"halfline\n"
    assert memory(os.getpid()) < before + (8 << 20)


def test_a_file_that_peeks_holds_no_more_than_the_standard_library(stream):
    """``pickle.load()`` peeks at each object, and copies all that is held."""
    stream.feed(b"x" * 50_000)
    with makefile(stream.near, "rb") as file:
        assert len(file.peek()) <= 8192
        assert len(file.read(9000)) == 9000
        assert len(file.peek()) <= 65_536

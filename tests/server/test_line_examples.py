"""The examples on LineServer, run as programs, with the clients that people use for them."""

# ruff: noqa: F811, the fixtures are imported

import re
import shutil
import signal

import pytest

from rioecho import connect
from support.peers import reset
from support.programs import LONG, command, other, run, start  # noqa: F401, fixtures


@pytest.fixture
def listen(start):
    """Return a function that starts a server of examples/ and returns the child, whose port is in ``port``."""

    def listen(name, *args):
        child = start(command(name, 0, *args))
        child.port = int(child.output.readline().split()[-1])
        return child

    return listen


@pytest.fixture
def kv(listen):
    return listen("kv.py")


def client(server):
    return connect("127.0.0.1", server.port, timeout=LONG)


def ask(rio, request, answer):
    rio.writen(request)
    assert rio.read(len(answer)) == answer


def resp(*strings):
    return b"*%d\r\n" % len(strings) + b"".join(b"$%d\r\n%b\r\n" % (len(string), string) for string in strings)


def redis(program, server, *args, data=b""):
    """Run a program of Redis and return its output."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    status, out, err = run([program, "-h", "127.0.0.1", "-p", str(server.port), *args], data)
    assert (status, err) == (0, b"")
    return out


# ---- the key-value store


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("PING", b"PONG\n"),
        ("ping hello", b"hello\n"),
        ("ECHO hello", b"hello\n"),
        ("GET none", b"\n"),
        ("SET key value", b"OK\n"),
        ("MSET a 1 b 2", b"OK\n"),
        ("MGET none none", b"\n\n"),
        ("INCR n", b"1\n"),
        ("DEL none", b"0\n"),
        ("EXISTS none", b"0\n"),
        ("CONFIG GET save", b"save\n\n"),
        ("GET", b"ERR unknown command, or wrong arguments\n\n"),
        ("MSET a", b"ERR unknown command, or wrong arguments\n\n"),
        ("NONE", b"ERR unknown command, or wrong arguments\n\n"),
    ],
)
def test_redis_cli_gets_the_answer_of_a_command(kv, words, answer):
    assert redis("redis-cli", kv, *words.split()) == answer


@pytest.mark.long
def test_redis_cli_runs_the_commands_of_its_input_in_order(kv):
    commands = b"SET a 1\nINCR a\nGET a\nMSET b x c y\nMGET a b c none\nDEL a b none\nEXISTS a c c\nINCR c\n"
    answers = b"OK\n2\n2\nOK\n2\nx\ny\n\n2\n2\nERR unknown command, or wrong arguments\n\n"
    assert redis("redis-cli", kv, data=commands) == answers


@pytest.mark.sampled(2)
@pytest.mark.parametrize("value", [b"", b"\n", b"a\nb\r\n\r\n$1\r\n\0\xff", b"x" * 900_000, b"\r\n" * 20_000])
def test_redis_cli_stores_any_bytes(kv, value):
    assert redis("redis-cli", kv, "-x", "SET", "key", data=value) == b"OK\n"
    assert redis("redis-cli", kv, "--raw", "GET", "key") == value + b"\n"


@pytest.mark.long
def test_redis_cli_pipes_commands_in_bulk(kv):
    data = b"".join(resp(b"SET", b"key%d" % n, b"line\r\n" * (n % 7)) for n in range(5000))
    assert b"errors: 0, replies: 5000" in redis("redis-cli", kv, "--pipe", data=data)
    assert redis("redis-cli", kv, "--raw", "GET", "key4999") == b"line\r\n" * (4999 % 7) + b"\n"


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 16])
def test_redis_benchmark_gets_no_error(kv, depth):
    options = ["-t", "ping,set,get,incr,mset", "-n", "2000", "-c", "20", "-P", str(depth), "-r", "100", "--csv"]
    rows = redis("redis-benchmark", kv, *options).decode().splitlines()
    assert [row.split(",")[0].strip('"') for row in rows[1:]] == [
        "PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)",
    ]  # fmt: skip


@pytest.mark.long
def test_nc_stores_and_gets_values_by_lines_of_words(kv):
    text = b"PING\nSET key value\r\n\nGET key\nEXISTS key none"
    assert run(other("nc", "127.0.0.1", kv.port), text) == (0, b"+PONG\r\n+OK\r\n$5\r\nvalue\r\n:1\r\n", b"")


def test_commands_may_arrive_in_any_pieces(kv):
    request = resp(b"SET", b"key", b"1\n\r\n2") + b"PING\r\n" + resp(b"GET", b"key")
    answer = b"+OK\r\n+PONG\r\n$5\r\n1\n\r\n2\r\n"
    with client(kv) as rio:
        for n in range(1, len(request)):
            rio.writen(request[:n])
            ask(rio, request[n:], answer)
        for byte in request:
            rio.writen(bytes([byte]))
        assert rio.read(len(answer)) == answer


def test_a_string_is_never_taken_for_a_command(kv):
    with client(kv) as rio:
        many = [b"\r\nSET key no\r\n"] * 400
        ask(rio, resp(b"EXISTS", *many), b":0\r\n")
        ask(rio, resp(b"GET", b"key"), b"$-1\r\n")


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "wrong",
    [
        b"*x\r\n",
        b"*1\r\n#4\r\nPING\r\n",
        b"*1\r\n$3\r\nPING\r\n",
        b"*1\r\n$-1\r\n\r\n",
        b"*1\r\n$1100000\r\n" + (b"x" * 99 + b"\n") * 10_900,
    ],
    ids=["count", "no size", "too small", "negative", "too long"],
)
def test_a_client_that_breaks_the_protocol_is_disconnected_and_others_are_not(kv, wrong):
    with client(kv) as rio, client(kv) as bad:
        ask(rio, b"SET key value\n", b"+OK\r\n")
        try:
            bad.writen(wrong)
            bad.write_eof()
            assert bad.read() == b""
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was closed before all had arrived
        ask(rio, b"GET key\n", b"$5\r\nvalue\r\n")


# ---- the statsd server


def statistics(child, names):
    """Read the output until each of these names has come. Returns what was said of each, with the last value."""
    values = {}
    while not names <= values.keys():
        line = child.output.readline()
        assert line, f"ended after {values}"
        name, value, _ = line.decode().split()
        values[name] = float(value)
    return values


def test_statsd_client_of_python_has_its_counts_flushed(listen):
    statsd = pytest.importorskip("statsd")
    server = listen("statsd.py", 3600)
    peer = statsd.TCPStatsClient("127.0.0.1", server.port, timeout=LONG, prefix="app")
    peer.incr("hits")
    peer.incr("hits", 4)
    peer.decr("hits", 2)
    peer.gauge("load", 10)
    peer.gauge("load", -3, delta=True)
    for time in (30, 10, 20):
        peer.timing("answer", time)
    peer.close()
    server.send_signal(signal.SIGTERM)  # the rest is flushed at the end
    values = statistics(server, {"stats.timers.app.answer.upper"})
    assert values["stats.app.hits.count"] == 3
    assert values["stats.gauges.app.load"] == 7
    assert [values[f"stats.timers.app.answer.{name}"] for name in ("count", "median", "upper")] == [3, 20, 30]
    assert server.wait(LONG) == 0


@pytest.mark.long
def test_nc_sends_statistics_and_bad_lines_are_counted(listen):
    server = listen("statsd.py", 3600)
    text = b"a:1|c|@0.5\na:b|c\nno\nb:1|x\nd:1|c|@0\ne:nan|g\n\xff:1|c\nlast:2.5|g"
    assert run(other("nc", "127.0.0.1", server.port), text) == (0, b"", b"")
    server.send_signal(signal.SIGINT)
    values = statistics(server, {"stats.a.count", "stats.gauges.last"})
    assert values["stats.a.count"] == 2
    assert values["stats.statsd.bad_lines.count"] == 6
    assert values["stats.gauges.last"] == 2.5
    assert server.wait(LONG) == 0


@pytest.mark.long
def test_statsd_flushes_each_interval_and_starts_anew(listen):
    server = listen("statsd.py", 0.05)
    with client(server) as rio:
        for _ in range(2):
            rio.writen(b"a:5|c\n")
            assert statistics(server, {"stats.a.count"})["stats.a.count"] == 5


# ---- the chat


@pytest.fixture
def enter(listen):
    """Return a function that enters the chat under a name, with its Rio as the result."""
    server = listen("chat_server.py")

    def enter(name, *others):
        rio = client(server)
        ask(rio, name + b"\n", b"Your name?\n")
        assert re.fullmatch(rb"Here: .*\b%b\b.*\n" % name, rio.readline())
        for member in others:
            assert member.readline() == name + b" has come\n"
        return rio

    enter.port = server.port
    return enter


def test_what_a_member_says_goes_to_all_others(enter):
    with enter(b"ann") as ann, enter(b"bob", ann) as bob, enter(b"eve", ann, bob) as eve:
        ann.writen(b"hi\nall\n")
        for member in (bob, eve):
            assert member.read(len(b"ann: hi\nann: all\n")) == b"ann: hi\nann: all\n"
        bob.writen(b"hi ann\n")
        for member in (ann, eve):
            assert member.readline() == b"bob: hi ann\n"


def test_a_member_that_leaves_or_is_reset_or_says_too_much_is_missed(enter):
    with (
        enter(b"ann") as ann,
        enter(b"bob", ann) as bob,
        enter(b"eve", ann, bob) as eve,
        enter(b"tom", ann, bob, eve) as tom,
    ):
        bob.write_eof()
        assert bob.readlines()[-1:] == []
        reset(eve.detach()[0])
        tom.writen(b"x" * 2000)
        left = {ann.readline() for _ in range(3)}
        assert left == {b"bob has left\n", b"eve has left\n", b"tom has left\n"}


def test_nc_takes_part_in_the_chat(enter, start):
    with enter(b"ann") as ann:
        nc = start(other("nc", "127.0.0.1", enter.port))
        nc.stdin.write(b"bob\nhi\n")
        assert [ann.readline(), ann.readline()] == [b"bob has come\n", b"bob: hi\n"]
        ann.writen(b"hi bob\n")
        assert [nc.output.readline() for _ in range(3)] == [b"Your name?\n", b"Here: ann, bob\n", b"ann: hi bob\n"]
        nc.terminate()
        assert ann.readline() == b"bob has left\n"


@pytest.mark.long
def test_a_member_that_reads_nothing_is_put_out_and_the_others_go_on(enter):
    with enter(b"ann") as ann, enter(b"bob", ann) as bob, enter(b"deaf", ann, bob) as deaf:
        said = (b"x" * 900 + b"\n") * 100
        while True:
            ann.writen(said)
            heard = [bob.readline() for _ in range(100)]
            if b"deaf has left\n" in heard:
                break
        assert ann.readline() == b"deaf has left\n"
        with pytest.raises(ConnectionResetError):
            deaf.read()

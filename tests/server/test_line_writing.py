"""Connection.write(), and what waits for a peer that does not read."""

import array
import os
import queue
import socket

import pytest

from support.handlers import Life, call, ended, nothing, serve, still_serves, stuff
from support.peers import SECONDS, Running, dial, lines, receive, reset
from support.procfs import until


@pytest.fixture
def life():
    return Life()


# Writing


@pytest.mark.parametrize(
    "data",
    [b"abc", bytearray(b"abc"), memoryview(b"abc"), array.array("B", b"abc"), b""],
    ids=lambda data: f"{type(data).__name__} {len(data)}",
)
@pytest.mark.parametrize("inside", [True, False])
def test_write_takes_anything_bytes_like_and_returns_its_size(data, inside, life):
    sizes = []
    answer = (lambda conn, lines: sizes.append(conn.write(data))) if inside else nothing
    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        client.sendall(b"x\n")
        life.next("input")
        if not inside:
            sizes.append(conn.write(data))
        assert receive(client, len(data)) == bytes(data)
        until(lambda: sizes == [len(data)])


def test_write_counts_the_bytes_of_wider_items(life):
    data = array.array("I", [1, 2, 3])
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        assert life.next("made").write(data) == 12
        assert receive(client, 12) == data.tobytes()


@pytest.mark.parametrize("data", ["text", 3, None, [b"x"], object()], ids=lambda data: type(data).__name__)
@pytest.mark.parametrize("inside", [True, False])
def test_write_of_anything_else_is_a_type_error(data, inside, life):
    with serve(life.handler(lambda conn, lines: conn.write(data) if inside else lines)) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            conn = life.next("made")
            if not inside:
                with pytest.raises(TypeError):
                    conn.write(data)
            client.sendall(b"x\n")
            if inside:
                assert isinstance(life.lost(), TypeError)
            else:
                assert receive(client, 2) == b"x\n"


def test_what_a_call_writes_is_sent_before_what_it_returns(life):
    def answer(conn, lines):
        conn.write(b"first ")
        conn.write(b"second ")
        return [b"third\n"]

    with serve(life.handler(answer, made=lambda conn: conn.write(b"hello ") and None)) as server:
        assert call(server, b"x\n") == b"hello first second third\n"


def test_a_greeting_needs_no_input(life):
    with serve(life.handler(made=lambda conn: conn.write(b"220 ready\r\n"))) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            assert receive(client, 11) == b"220 ready\r\n"


def test_what_a_generator_writes_is_sent_before_what_it_yields(life):
    def answer(conn, lines):
        for line in lines:
            conn.write(b"w")
            yield line

    with serve(life.handler(answer)) as server:
        assert call(server, b"a\nb\n") == b"wwa\nb\n"


def test_writes_of_a_thread_arrive_in_order(life):
    parts = lines(2000)
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        for part in parts:
            conn.write(part)
        assert receive(client, sum(map(len, parts))) == b"".join(parts)


def test_writes_of_many_threads_are_not_mixed(life):
    with serve(life.handler(), write_limit=0) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        talks = [Running(lambda n=n: [conn.write(b"%d %04d\n" % (n, i)) for i in range(500)]) for n in range(4)]
        client.sendall(b"x\n")
        data = receive(client, 4 * 500 * 7 + 2)
        for talk in talks:
            talk.result()
    got = data.splitlines()
    for n in range(4):
        assert [int(line[2:]) for line in got if line.startswith(b"%d " % n)] == list(range(500))


def test_one_connection_may_write_to_another():
    members = set()

    class Chat:
        def connection_made(self, conn):
            self.conn = conn
            members.add(conn)

        def lines_received(self, lines):
            for other in members - {self.conn}:
                other.write(b"".join(lines))

        def connection_lost(self, reason):
            members.discard(self.conn)

    with serve(Chat) as server:
        with dial(server.addresses[0]) as one, dial(server.addresses[0]) as two:
            until(lambda: len(members) == 2)
            for _ in range(50):
                one.sendall(b"from one\n")
                assert receive(two, 9) == b"from one\n"
                two.sendall(b"from two\n")
                assert receive(one, 9) == b"from two\n"
        until(lambda: not members)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_handler_may_write_to_a_connection_of_another_worker(workers):
    conns = []

    class Tell:
        def connection_made(self, conn):
            conns.append(conn)

        def lines_received(self, lines):
            for conn in conns:
                conn.write(b"".join(lines))

    with serve(Tell, workers=workers) as server:
        clients = [dial(server.addresses[0]) for _ in range(6)]
        until(lambda: len(conns) == 6)
        clients[0].sendall(b"to all\n")
        for client in clients:
            assert receive(client, 7) == b"to all\n"
            client.close()


@pytest.mark.long
@pytest.mark.parametrize("end", ["eof", "reset", "abort", "close", "raise", "stop"])
def test_a_write_after_the_end_is_a_connection_error(end, life):
    def answer(conn, lines):
        if end == "raise":
            raise ValueError
        getattr(conn, end, lambda: None)()

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        if end == "reset":
            reset(client)
        elif end == "stop":
            server.stop()
        else:
            client.sendall(b"x\n")
            if end == "eof":
                client.shutdown(socket.SHUT_WR)
            ended(client)
        life.lost()
        with pytest.raises(ConnectionError):
            conn.write(b"late")
        with pytest.raises(ConnectionError):
            conn.write(b"late")
        conn.close()
        conn.abort()
    with pytest.raises(ConnectionError):
        conn.write(b"late")


def test_a_write_in_connection_lost_is_a_connection_error(life):
    seen = queue.SimpleQueue()

    def lost(conn, reason):
        try:
            conn.write(b"late")
        except ConnectionError as error:
            seen.put(error)

    with serve(life.handler(lost=lost)) as server:
        still_serves(server)
        seen.get(timeout=SECONDS)


# The limit of what waits


def test_to_a_peer_that_does_not_read_a_write_fails_at_the_limit(life):
    with serve(life.handler(), write_limit=100_000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        taken = stuff(conn)
        with pytest.raises(BlockingIOError):
            conn.write(b"x" * 100_000)
        assert len(receive(client, taken)) == taken
        until(lambda: _takes(conn, b"y" * 99_000))
        assert receive(client, 99_000) == b"y" * 99_000


def _takes(conn, data):
    try:
        return conn.write(data) == len(data)
    except BlockingIOError:
        return False


def test_in_a_call_a_write_fails_at_the_limit(life):
    taken = []
    with serve(life.handler(lambda conn, lines: taken.append(stuff(conn))), write_limit=100_000) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            client.sendall(b"x\n")
            until(lambda: taken)
            assert receive(client, taken[0]) == b"x" * taken[0]


def test_one_write_larger_than_the_limit_is_taken_if_none_waits(life):
    big = os.urandom(5_000_000)
    with serve(life.handler(), write_limit=1000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        assert conn.write(big) == len(big)
        with pytest.raises(BlockingIOError):
            conn.write(big)
        assert receive(client, len(big)) == big


def test_with_no_limit_writes_wait_without_end(life):
    piece = os.urandom(1 << 20)
    with serve(life.handler(), write_limit=0) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        for _ in range(16):
            conn.write(piece)
        assert receive(client, 16 << 20) == piece * 16


def test_what_waits_is_sent_before_the_rest_of_a_line_is_read(life):
    big = os.urandom(1_000_000) * 20  # more than the socket buffers take
    with serve(life.handler(), write_limit=0) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        client.sendall(b"begin")
        until(lambda: server.stats()["bytes_in"] == 5)
        for at in range(0, len(big), 500_000):  # the beginning of the line is kept behind what is not sent
            conn.write(big[at : at + 500_000])
        assert server.stats()["bytes_out"] < len(big)
        assert receive(client, len(big)) == big
        client.sendall(b" end\n")
        assert life.next("input") == [b"begin end\n"]
        assert receive(client, 10) == b"begin end\n"


@pytest.mark.slow
def test_a_peer_that_does_not_read_is_not_read_from(life):
    with serve(life.handler(nothing), write_limit=100_000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        conn.write(b"x" * 20_000_000)  # more than the socket buffers take
        until(lambda: not _takes(conn, b"x"))
        filled(client)
        assert server.stats()["bytes_in"] < 5_000_000
        client.close()
        life.lost()


def filled(client):
    """Send until nothing more is taken for a while."""
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        for _ in range(2000):
            client.send(b"more\n" * 10_000)

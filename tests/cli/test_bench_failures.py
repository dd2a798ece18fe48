"""rioecho-bench and errors during the run: one line, an exit status for each kind, and the result so far."""

import contextlib
import json
import os
import queue
import re
import selectors
import signal
import socket
import threading
import time

import pytest

from support.loads import MODULE, unanswered
from support.peers import SECONDS, Command, answering, receive, reset


@contextlib.contextmanager
def serving(answer):
    """Run a server for any number of connections; yield its HOST:PORT.

    ``answer(sock, data, n)`` is called with received data, where n is the number of bytes received before on the
    connection. It returns False to close the connection.
    """
    done, sockets = threading.Event(), {}

    def serve():
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not done.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is listener:
                        sock, _ = listener.accept()
                        sock.settimeout(SECONDS)
                        sockets[sock] = 0
                        selector.register(sock, selectors.EVENT_READ)
                        continue
                    sock = key.fileobj
                    with contextlib.suppress(OSError):
                        data = sock.recv(1 << 16)
                        before = sockets[sock]
                        sockets[sock] += len(data)
                        if data and answer(sock, data, before) is not False:
                            continue
                    selector.unregister(sock)
                    sockets.pop(sock)
                    sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            done.set()
            thread.join(SECONDS)
            for sock in sockets:
                sock.close()
    assert not thread.is_alive()


def failed(*arguments, **options):
    """Run the command; return its status, stdout and the last line of stderr, after the lines of progress."""
    with Command(MODULE, *arguments, **options) as bench:
        status = bench.status()
        *run, complaint = bench.err.text.splitlines()
        assert complaint.startswith("rioecho-bench: ")
        assert all("/s  p50" in line for line in run), bench.err.text
        return status, bench.out.text, complaint


def flipped(sock, data, before):
    """Echo with the byte at offset 1000 changed."""
    data = bytearray(data)
    if before <= 1000 < before + len(data):
        data[1000 - before] ^= 1
    sock.sendall(data)


def one_too_many(sock, data, before):
    sock.sendall(data + b"x")


def swapped(sock, data, before):
    sock.sendall(data[64:] + data[:64])


def of_another_connection():
    """Return an answer that sends to each of two connections what the other one sent."""
    waiting = []

    def answer(sock, data, before):
        waiting.append((sock, data))
        if len(waiting) == 2:
            (one, first), (two, second) = waiting
            one.sendall(second)
            two.sendall(first)

    return answer


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("answer", "offset"),
    [(flipped, "1000"), (one_too_many, "128"), (swapped, r"\d"), (of_another_connection(), r"\d")],
    ids=["flipped", "one too many", "swapped", "of another connection"],
)
def test_a_wrong_echo_is_status_3(answer, offset):
    with serving(answer) as address:
        status, _, complaint = failed(address, "-c", "2", "-d", "5", "--pipeline", "2")
    assert status == 3
    assert re.fullmatch(
        rf"rioecho-bench: wrong echo: on connection [01] the byte at offset {offset} is not what was sent", complaint
    )


@pytest.mark.long
def test_the_result_before_a_wrong_echo_is_shown(tmp_path):
    path = tmp_path / "run.json"
    with serving(flipped) as address:
        status, out, _ = failed(address, "-c", "1", "-d", "5", "--warmup", "0", "--json", path)
    run = json.loads(path.read_text())
    assert (status, run["messages"], run["errors"]) == (3, 15, 1)  # the 1000th byte is in the 16th message
    assert "p99.9" in out


#: How a server ends a connection, and whether it continues to read.
ENDS = {
    "close": (lambda sock: None, False),
    "reset": (lambda sock: reset(sock.dup()), False),
    "end its side only": (lambda sock: sock.shutdown(socket.SHUT_WR), True),
}


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", ENDS)
def test_a_connection_closed_by_the_server_is_status_1(how):
    end, goes_on = ENDS[how]

    def answer(sock, data, before):
        if before < 1000:
            sock.sendall(data)
            return True
        end(sock)
        return goes_on

    with serving(answer) as address:
        status, _, complaint = failed(address, "-c", "2", "-d", "5")
    assert status == 1
    assert re.fullmatch(
        r"rioecho-bench: connection [01] was (closed by the server|lost \(Connection reset by peer\)); "
        r"64 bytes were not echoed",
        complaint,
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 63], ids=["nothing", "all but the last byte"])
def test_a_server_that_withholds_bytes_is_status_1(part):
    with serving(lambda sock, data, before: before > 0 or sock.sendall(data[:part])) as address:
        status, out, complaint = failed(address, "-c", "1", "-d", "9", "--warmup", "9", "--stall-timeout", "0.4")
    assert (status, out) == (1, "")  # the warm-up had not ended
    assert complaint == "rioecho-bench: stalled: no byte received for 0.4 s, 1 messages in flight"


@pytest.mark.slow
def test_a_server_that_does_not_even_accept_is_status_1():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        status, _, complaint = failed(
            "{}:{}".format(*listener.getsockname()), "-c", "2", "-d", "5", "--stall-timeout", "0.4"
        )
    assert status == 1
    assert "no byte received for 0.4 s, 2 messages" in complaint


@pytest.mark.slow
def test_a_server_that_echoes_byte_by_byte_is_only_slow():
    def drip(sock, data, before):
        for i in range(len(data)):
            sock.sendall(data[i : i + 1])
            time.sleep(0.02)

    with serving(drip) as address:
        # A message takes 1.2 seconds.
        arguments = [address, "-c", "1", "-d", "0.5", "--warmup", "0", "--stall-timeout", "9", "--json"]
        with Command(MODULE, *arguments) as bench:
            assert bench.status() == 0, bench.err.text
            assert json.loads(bench.out.text)["latency_us"]["max"] > 1_200_000


@pytest.mark.slow
def test_a_suspended_test_continues_and_has_not_stalled():
    """An echo is in flight during the suspension, for longer than --stall-timeout."""
    started = queue.SimpleQueue()

    def talk(sock):
        sock.sendall(receive(sock, 64))
        data = receive(sock, 64)
        bench = started.get(timeout=SECONDS)
        bench.signal(signal.SIGSTOP)
        os.waitpid(bench.pid, os.WUNTRACED)
        sock.sendall(data)
        time.sleep(2.5)
        bench.signal(signal.SIGCONT)
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(1 << 16):
                sock.sendall(data)

    with answering(talk) as address:
        target = "{}:{}".format(*address)
        with Command(MODULE, target, "-c", "1", "-d", "1", "--warmup", "0", "--stall-timeout", "2", "--json") as bench:
            started.put(bench)
            assert bench.status() == 0, bench.err.text
            assert json.loads(bench.out.text)["latency_us"]["max"] > 2_500_000


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1000])
def test_a_server_that_stalls_is_status_1_and_the_ages_of_messages_in_flight_are_shown(after, tmp_path):
    path = tmp_path / "run.json"
    with serving(lambda sock, data, before: before >= after or sock.sendall(data)) as address:
        status, out, complaint = failed(
            address, "-c", "2", "-d", "10", "--warmup", "0", "--stall-timeout", "0.7", "--json", path
        )
    assert status == 1
    assert "0.7" in complaint
    if after:
        assert json.loads(path.read_text())["latency_us"]["max"] > 500_000
        assert "max" in out


@pytest.mark.slow
def test_a_server_that_stalls_beyond_the_end_of_a_short_run_is_status_1():
    with serving(lambda sock, data, before: True) as address:
        status, _, _ = failed(address, "-c", "2", "-d", "0.3", "--stall-timeout", "0.6")
    assert status == 1


@pytest.mark.long
def test_a_refused_connection_is_status_1_and_only_the_json_is_printed():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # without listen()
        address = "{}:{}".format(*sock.getsockname())
        status, out, complaint = failed(address, "-c4")
        assert (status, out) == (1, "")
        assert "Connection refused" in complaint
        assert address.rpartition(":")[2] in complaint
        status, out, _ = failed(address, "--json")
    run = json.loads(out)
    assert (status, run["messages"], run["interrupted"]) == (1, 0, False)
    assert run["error"] == complaint.removeprefix("rioecho-bench: ")


@pytest.mark.long
def test_an_unknown_host_is_status_1():
    status, out, complaint = failed("no-such-host.invalid:1")
    assert (status, out) == (1, "")
    assert "no-such-host.invalid" in complaint


@pytest.mark.long
def test_a_missing_unix_socket_is_status_1(tmp_path):
    status, out, complaint = failed("--unix", tmp_path / "none")
    assert (status, out) == (1, "")
    assert "none" in complaint


@pytest.mark.long
def test_more_connections_than_descriptors_is_status_1(target):
    status, _, complaint = failed(target, "-c", "100", "-d", "1", prelude="ulimit -n 64")
    assert status == 1
    assert "open files" in complaint


@pytest.mark.long
@pytest.mark.skipif(
    os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer needs terabytes of addresses"
)
def test_more_threads_than_the_system_allows_is_status_1(target):
    # The stack of a thread has the size of this limit, and four of them exceed the limit of memory.
    limits = "ulimit -s 1000000; ulimit -v 2000000"
    status, _, complaint = failed(target, "-c", "4", "--threads", "4", "--json", os.devnull, prelude=limits)
    assert status == 1
    assert complaint == "rioecho-bench: the system does not allow 4 threads"


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_warnings_that_cannot_be_written_do_not_change_the_status(target):
    with open("/dev/full", "w") as full:
        arguments = ("-c", "1", "-d", "0.01")  # too short for its percentiles, which is a warning
        with Command(MODULE, target, *arguments, "--json", stderr=full) as bench:
            assert bench.status() == 0
            assert json.loads(bench.out.text)["connections"] == 1
        with (
            serving(lambda sock, data, before: sock.sendall(data[::-1])) as address,
            Command(MODULE, address, "-c", "1", "-d", "20", stderr=full) as bench,  # ends at the first wrong echo
        ):
            assert bench.status() == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_run_and_the_result_so_far_is_printed(target, tmp_path, number, status, words):
    path = tmp_path / "run.hgrm"
    with Command(MODULE, target, "-d", "60", "-c", "4", "--warmup", "0", "--hdr", path) as bench:
        bench.err.wait_for("p50")
        bench.signal(number)
        assert bench.process.wait(SECONDS) == status
        bench.status()
        assert bench.err.text.splitlines()[-1] == f"rioecho-bench: {words}"
        assert "Traceback" not in bench.err.text
        assert "p99.9" in bench.out.text
    assert path.read_text().split()[0] == "Value"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "signals"),
    [
        (("-d", "60", "--warmup", "60"), 1),
        (("-d", "60", "--warmup", "0"), 2),
        (("-d", "0.2", "--warmup", "0"), 1),
    ],
    ids=["warming up", "measuring, and again", "waiting for the last"],
)
def test_ctrl_c_during_a_stall_is_status_130(times, signals):
    with (
        serving(lambda sock, data, before: True) as address,
        Command(MODULE, address, "-c", "2", "--stall-timeout", "60", *times) as bench,
    ):
        bench.err.wait_for("p50")  # printed after a second
        if signals == 1:
            bench.signal(signal.SIGINT)
        else:
            bench.interrupt()
        assert bench.status() == 130
        assert "Traceback" not in bench.err.text
        if signals == 1:
            assert bench.err.text.splitlines()[-1] == "rioecho-bench: interrupted"
            # Messages in flight count with their age, but not during the warm-up.
            assert ("p99.9" in bench.out.text) == ("60" not in times[3:])


@pytest.mark.slow
def test_the_json_of_an_interrupted_run_is_complete(target):
    with Command(MODULE, target, "-d", "60", "-c", "4", "--warmup", "0", "--json") as bench:
        bench.err.wait_for("p50")
        bench.signal(signal.SIGINT)
        assert bench.status() == 130
        run = json.loads(bench.out.text)
    assert run["messages"] > 0
    assert run["duration_s"] < 55


@pytest.mark.long
def test_ctrl_c_during_connect_is_status_130():
    with (
        unanswered() as dead,
        Command(MODULE, "{}:{}".format(*dead), "-c", "3", code=CONNECTING) as bench,
    ):
        bench.out.wait_for("connecting")
        bench.signal(signal.SIGINT)
        assert bench.process.wait(SECONDS) == 130
        bench.status()
        assert "Traceback" not in bench.err.text


CONNECTING = """if True:
    import warnings
    # The signal may arrive between the opening of a socket or module and the statement that will close it.
    warnings.simplefilter("ignore", ResourceWarning)
    from rioecho.cli import bench
    real = bench.run
    def run(*arguments, **options):
        print("connecting", flush=True)
        return real(*arguments, **options)
    bench.run = run
    bench.main()
"""


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_does_not_withhold_the_result(target):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    try:
        with Command(MODULE, target, "-d", "1.2", "-c", "2", "--json", stderr=writer) as bench:
            bench.out.wait_for("}\n")
            assert json.loads(bench.out.text)["messages"] > 0
            os.read(reader, 1 << 16)  # makes room for a warning, which is written in any case
            assert bench.status() == 0
    finally:
        os.close(writer)
        os.close(reader)

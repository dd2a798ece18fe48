"""rioecho.bench: consistent results, progress, failures, and resources after a run."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from rioecho import EchoServer
from rioecho.bench import BenchError, ConnectionLost, EchoError, Histogram, Interrupted, Plan, Stalled, WrongEcho, run
from rioecho.client import EchoLostError, WrongEchoError
from support.peers import SECONDS, Running, answering, receive, reset

SHOWN = [
    "target connections message_bytes pipeline threads duration_s rate_asked messages rate mb_per_s errors",
    "latency_us latency_uncorrected_us late_p99_us reconnects lost version date interrupted error histogram",
]
LATENCIES = ["mean", "p50", "p90", "p99", "p99.9", "max"]


def target(address):
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def short(address, **options):
    """Return a plan of a short test."""
    return Plan(target(address), **({"connections": 4, "duration": 0.2, "warmup": 0.05} | options))


def hold(sock):
    """Receive until EOF and send nothing."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass


# ---- the result


def check(result, plan):
    """Assert what is true of every result."""
    shown = result.to_json()
    both = ["histogram_uncorrected"] if plan.rate else []
    assert list(shown) == " ".join(SHOWN).split() + both
    assert Histogram.from_json(shown["histogram"]).to_json() == result.histogram.to_json()
    assert json.loads(json.dumps(shown)) == shown
    assert result.mb_per_s == pytest.approx(result.rate * plan.message_bytes / 1e6)
    assert result.rate == pytest.approx(result.messages / result.duration_s)
    for h, latency in (
        (result.histogram, result.latency_us),
        (result.histogram_uncorrected, result.latency_uncorrected_us),
    ):
        assert list(latency) == LATENCIES
        assert latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
        assert latency["max"] == pytest.approx(h.max)
        assert result.messages <= h.count
    assert 0 <= result.late_p99_us <= (result.histogram.max if plan.rate else 0)
    for at, rate, p99 in result.samples:
        assert 0 < at <= plan.duration + 1e-6
        assert rate >= 0
        assert p99 >= 0
    assert result.messages <= result.total_messages


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("engine", ["event", "thread", "process"])
@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_a_result_adds_up_and_agrees_with_the_server(engine, size):
    with EchoServer(engine=engine) as server:
        plan = short(server.addresses[0], message_bytes=size, pipeline=3, duration=1)
        result = run(plan)
        server.stop()
        stats = server.stats()
    check(result, plan)
    assert stats["bytes_in"] == stats["bytes_out"] == result.total_messages * size
    assert stats["accepted"] == 4
    assert (result.errors, result.rate_asked, result.duration_s) == (0, None, pytest.approx(1, abs=1e-6))
    assert 0 < result.messages <= result.histogram.count <= result.messages + 12
    assert result.latency_uncorrected_us == result.latency_us
    assert result.histogram is result.histogram_uncorrected


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_share_the_connections_and_the_rate(threads):
    with EchoServer() as server:
        plan = short(server.addresses[-1], connections=7, threads=threads, rate=1000, pipeline=100)
        result = run(plan)
        assert server.stats()["accepted"] == 7
        check(result, plan)
        assert 1 <= result.total_messages <= 250 + 7  # each connection rounds its schedule on its own
        assert result.messages <= result.total_messages
        assert result.rate_asked == 1000
        assert result.histogram is not result.histogram_uncorrected


@pytest.mark.long
def test_a_unix_socket_is_a_target(tmp_path):
    with EchoServer(port=None, unix=tmp_path / "echo"):
        plan = dataclasses.replace(short(("x", 1)), target=f"unix:{tmp_path / 'echo'}")
        result = run(plan)
        check(result, plan)
        assert result.messages > 0
        assert result.target == plan.target


@pytest.mark.long
def test_a_name_is_a_target():
    with EchoServer() as server:
        assert run(short(("localhost", server.addresses[0][1]))).messages > 0


@pytest.mark.long
def test_without_a_warm_up_everything_is_measured():
    with EchoServer() as server:
        result = run(short(server.addresses[0], warmup=0))
        assert result.total_messages - 4 <= result.messages <= result.total_messages


@pytest.mark.slow
def test_the_samples_are_of_the_measured_time_and_their_number_is_bounded():
    with EchoServer() as server:
        plan = short(server.addresses[0], duration=0.55)
        result = run(plan)
    assert 1 <= len(result.samples) <= 7
    assert result.samples[-1][0] <= 0.55 + 1e-6
    assert [at for at, _, _ in result.samples] == sorted(at for at, _, _ in result.samples)
    assert sum(
        rate * (at - before)
        for (at, rate, _), before in zip(result.samples, [0, *(at for at, _, _ in result.samples)], strict=False)
    ) <= result.messages * (1 + 1e-9)


@pytest.mark.long
def test_the_hgrm_file_has_the_format_of_hdrhistogram(tmp_path):
    with EchoServer() as server:
        result = run(short(server.addresses[0]))
    result.write_hgrm(tmp_path / "x.hgrm")
    lines = (tmp_path / "x.hgrm").read_text().splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert lines[1] == ""
    rows = [line.split() for line in lines[2:] if not line.startswith("#")]
    assert all(len(row) == 4 for row in rows[:-1])
    value, percentile, count = rows[-1]
    assert (float(value), float(percentile)) == (pytest.approx(result.histogram.max, abs=0.001), 1.0)
    assert int(count) == result.histogram.count
    for row, after in itertools.pairwise(rows):
        assert float(row[0]) <= float(after[0])
        assert float(row[1]) < float(after[1])
        assert float(row[3]) == pytest.approx(1 / (1 - float(row[1])), abs=0.006)
    footer = [line for line in lines if line.startswith("#")]
    assert re.fullmatch(r"#\[Mean    = +[\d.]+, StdDeviation   = +[\d.]+\]", footer[0])
    assert re.fullmatch(r"#\[Max     = +[\d.]+, Total count    = +\d+\]", footer[1])
    assert re.fullmatch(r"#\[Buckets = +32, SubBuckets     = +2048\]", footer[2])


@pytest.mark.long
def test_a_result_warns_of_too_few_messages_and_of_a_missed_rate():
    def talk(sock):
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(100):
                time.sleep(0.02)
                sock.sendall(data)

    with answering(talk) as address:
        result = run(short(address, connections=1, rate=500))
    thin, slow = result.warnings
    assert re.fullmatch(r"\d+ messages are too few for these percentiles: p99.9 needs 1000", thin) or "p99 " in thin
    assert re.fullmatch(r"the rate was not reached: [\d.]+ of 500 messages per second", slow)


def test_a_large_rate_is_printed_without_an_exponent():
    with EchoServer() as server:
        result = run(short(server.addresses[0], rate=1e9, duration=0.02))
    assert re.fullmatch(r"the rate was not reached: [\d.]+ of 1000000000 messages per second", result.warnings[-1])


# ---- progress


@pytest.mark.slow
def test_progress_is_reported_to_the_end():
    seen = []
    with EchoServer() as server:
        result = run(short(server.addresses[0], duration=0.3, warmup=0.2), seen.append, 0.05)
    assert len(seen) >= 3
    assert seen[-1].fraction == 1.0
    assert seen[-1].messages == result.messages
    assert seen[-1].max == result.histogram.max
    assert seen[0].warming_up
    for before, after in itertools.pairwise(seen):
        assert before.elapsed < after.elapsed
        assert before.fraction <= after.fraction
        assert before.messages <= after.messages
        assert before.warming_up >= after.warming_up
    for each in seen:
        assert 0 <= each.in_flight <= 4
        assert each.p50 <= each.p99 <= each.max
        assert min(each.rate, each.total_rate) >= 0
        assert each.messages == 0 or not each.warming_up


def test_an_exception_of_on_progress_ends_the_test_and_its_threads():
    def refuse(progress):
        raise KeyError(progress.messages)

    before = set(threading.enumerate())
    with EchoServer() as server:
        running = set(threading.enumerate())
        with pytest.raises(KeyError):
            run(short(server.addresses[0], duration=1000, threads=2), refuse, 0.05)
        assert set(threading.enumerate()) <= running
    assert set(threading.enumerate()) <= before


def test_every_must_be_above_zero():
    with pytest.raises(ValueError, match="every"):
        run(Plan("localhost:1"), print, 0)


def test_a_stopped_test_returns_its_result_so_far():
    stop = threading.Event()
    seen = []

    def report(progress):
        seen.append(progress)
        if progress.messages > 10:
            stop.set()

    with EchoServer() as server:
        plan = short(server.addresses[0], duration=1000, threads=2)
        result = run(plan, report, 0.02, stop=stop)
    check(result, plan)
    assert result.messages > 10
    assert result.duration_s < SECONDS
    assert result.errors == 0
    assert result.warnings[0].startswith("stopped early: ")


@pytest.mark.long
def test_the_threads_alternate_on_the_schedule():
    with EchoServer() as server:
        # Two per second: the second message is not due before the end.
        plan = short(server.addresses[0], connections=2, threads=2, rate=2, duration=0.4, warmup=0)
        assert run(plan).total_messages == 1


@pytest.mark.slow
def test_after_a_stop_it_waits_for_messages_in_flight_without_using_the_processor():
    stop = threading.Event()
    with answering(hold) as address:
        plan = short(address, connections=1, duration=10, warmup=0, stall_timeout=60)
        used = time.thread_time()
        run(plan, lambda progress: stop.set(), 0.2, stop=stop)
        assert time.thread_time() - used < 0.3


@pytest.mark.long
def test_ctrl_c_raises_interrupted_with_the_result_so_far(child):
    printed = child("""if True:
        import os, signal, threading
        from rioecho import EchoServer
        from rioecho.bench import Interrupted, Plan, run
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with EchoServer() as server:
            plan = Plan(f"127.0.0.1:{server.addresses[0][1]}", duration=1000, warmup=0, threads=2)
            def press():
                while server.stats()["lines"] < 1000:  # most of their echoes have been counted: 50 are in flight
                    os.sched_yield()
                os.kill(os.getpid(), signal.SIGINT)
            threading.Thread(target=press).start()
            try:
                run(plan)
            except Interrupted as error:
                print(error.result.messages > 0, error.result.duration_s < 30, error.result.warnings[0][:13])
    """)
    assert printed == "True True stopped early\n"
    assert issubclass(Interrupted, KeyboardInterrupt)


@pytest.mark.long
def test_ctrl_c_in_the_last_report_keeps_the_whole_result():
    def report(progress):
        raise KeyboardInterrupt

    with EchoServer() as server:
        plan = short(server.addresses[0])
        with pytest.raises(Interrupted) as raised:
            run(plan, report, 1000)
    check(raised.value.result, plan)
    assert raised.value.result.duration_s == pytest.approx(0.2)
    assert not any(warning.startswith("stopped early") for warning in raised.value.result.warnings)


# ---- failures


def test_the_older_names_of_the_errors_are_the_client_s_classes():
    assert (BenchError, WrongEcho, ConnectionLost) == (EchoError, WrongEchoError, EchoLostError)
    assert issubclass(Stalled, EchoError)


def test_a_wrong_echo_ends_the_test():
    def talk(sock):
        sock.sendall(receive(sock, 64)[:63] + b"!")
        hold(sock)

    with answering(talk) as address, pytest.raises(WrongEchoError) as raised:
        run(short(address, connections=1, duration=SECONDS))
    error = raised.value
    assert (error.connection, error.offset, error.result.errors) == (0, 63, 1)
    assert str(error) == "wrong echo: on connection 0 the byte at offset 63 is not what was sent"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_lost_connection_ends_the_test_with_the_result_so_far(how):
    def talk(sock):
        for _ in range(100):
            sock.sendall(receive(sock, 64))
        receive(sock, 64)
        if how == "reset":
            reset(sock)

    with answering(talk) as address, pytest.raises(EchoLostError) as raised:
        run(short(address, connections=1, duration=SECONDS, warmup=0))
    error = raised.value
    assert isinstance(error, (EchoError, OSError))
    assert (error.connection, error.missing) == (0, 64)
    assert (error.result.messages, error.result.total_messages, error.result.errors) == (100, 100, 1)
    assert error.result.histogram.count == 101
    reason = "was lost (Connection reset by peer)" if how == "reset" else "was closed by the server"
    assert error.strerror == f"connection 0 {reason}; 64 bytes were not echoed"


@pytest.mark.slow
def test_a_server_that_stalls_ends_the_test():
    def talk(sock):
        sock.sendall(receive(sock, 64))
        hold(sock)

    with answering(talk) as address, pytest.raises(Stalled) as raised:
        run(short(address, connections=1, duration=SECONDS, warmup=0, stall_timeout=2.5))
    error = raised.value
    assert isinstance(error, TimeoutError)
    assert error.strerror == "stalled: no byte received for 2.5 s, 1 messages in flight"
    assert (error.result.messages, error.result.histogram.count, error.result.errors) == (1, 2, 1)
    assert error.result.latency_us["max"] >= 2_500_000


def test_a_failure_in_one_thread_ends_the_others():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            one, two = listener.accept()[0], listener.accept()[0]
            with one, two:
                hold_one = Running(hold, one)
                receive(two, 64)
                two.close()
                hold_one.result()

        running = Running(serve)
        before = time.monotonic()
        with pytest.raises(EchoLostError) as raised:
            run(short(listener.getsockname(), connections=2, threads=2, duration=1000))
        assert time.monotonic() - before < SECONDS
        assert raised.value.connection == 1
        running.result()


def test_a_refused_connection_is_an_error_that_names_the_target():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect to 127.0.0.1 port {port}: "):
        run(Plan(f"127.0.0.1:{port}"))
    with pytest.raises(FileNotFoundError, match="cannot connect to /nowhere/at all"):
        run(Plan("unix:/nowhere/at all"))


@pytest.mark.slow
def test_a_server_for_one_connection_at_a_time_leaves_the_others_stalled():
    with EchoServer(engine="iterative") as server, pytest.raises(Stalled) as raised:
        run(short(server.addresses[0], connections=3, duration=1.5, stall_timeout=2))
    assert raised.value.missing >= 2
    assert raised.value.result.messages > 0


# ---- resources


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory")
def test_memory_does_not_grow_with_the_number_of_messages(child):
    printed = child("""if True:
        import os
        from rioecho import EchoServer
        from rioecho.bench import Plan, run

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        with EchoServer() as server:
            target = f"127.0.0.1:{server.addresses[0][1]}"
            for rate in (None, 20000):
                run(Plan(target, duration=0.2, warmup=0, pipeline=32, rate=rate))
                before = resident()
                messages = run(Plan(target, duration=0.6, warmup=0, pipeline=32, rate=rate)).total_messages
                print(messages > 1000, resident() - before < 2 << 20)
    """)
    assert printed == "True True\n" * 2


def test_importing_the_package_does_not_import_the_load_test():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, rioecho; print([m for m in sys.modules if 'bench' in m or 'load' in m])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rioecho.bench" not in done.stdout
    assert "_load.loop" not in done.stdout

"""Connecting the sockets of a load test: side by side, over all addresses, spread over time, and what errors say."""

import contextlib
import errno
import os
import shlex
import socket
import sys
import threading
import time

import pytest

from rioecho import EchoServer
from rioecho._load.connector import AT_ONCE, Connector
from rioecho.bench import Plan, run
from support.loads import unanswered
from support.namespaces import SILENT_HOST, inside
from support.peers import SECONDS, Command, Running, needs_ipv6
from support.procfs import until


def lookups(monkeypatch, *addresses):
    """Let every name have these addresses of IPv4, (host, port)."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@contextlib.contextmanager
def connecting(target, **options):
    connector = Connector(Plan(target, **options))
    try:
        yield connector
    finally:
        connector.close()


def remote(address):
    """Return an address of IPv4 as /proc/net/tcp shows it."""
    return f"{int.from_bytes(socket.inet_aton(address[0]), sys.byteorder):08X}:{address[1]:04X}"


def begun(address):
    """Return the number of this system's TCP connections to an address of IPv4, established or not."""
    with open("/proc/net/tcp") as table:
        return sum(line.split()[2] == remote(address) for line in table)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse what their queue has no room for")
def test_connections_to_a_server_that_answers_late_are_made_side_by_side():
    """The kernel answers a connect to a full listen queue a second later: it takes one second, not one for each."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        accepted = []

        def accept():
            while len(accepted) < 20:
                accepted.append(listener.accept()[0])

        with connecting("{}:{}".format(*listener.getsockname()), connections=20) as connector:
            seen = []
            done = Running(connector.connect_all, seen.append, 0.05, None)
            until(lambda: begun(listener.getsockname()) == 20)  # all have begun, and most are dropped
            listener.listen(20)
            before = time.monotonic()
            accepting = Running(accept)
            assert done.result() is True
            accepting.result()
            assert time.monotonic() - before < 8
            assert seen == sorted(seen)
            assert all(0 <= n < 20 for n in seen)
        for sock in accepted:
            sock.close()


def test_connections_alternate_over_all_addresses_of_the_name(monkeypatch):
    with EchoServer(host="127.0.0.1") as one, EchoServer(host="127.0.0.2") as two:
        lookups(monkeypatch, one.addresses[0], two.addresses[0])
        assert run(Plan("name:1", connections=6, duration=0.1, warmup=0)).messages > 0
        assert (one.stats()["accepted"], two.stats()["accepted"]) == (3, 3)


def test_addresses_that_fail_at_once_are_tried_one_after_the_other(monkeypatch):
    """A name may have more of them than a call stack has room for."""
    with EchoServer(host="127.0.0.1") as server:
        lookups(monkeypatch, *[("255.255.255.255", 9)] * 2000, server.addresses[0])
        with connecting("name:1", connections=1) as connector:
            assert connector.connect_all(None, 1.0, None)


@pytest.mark.long
@needs_ipv6
def test_an_address_where_nobody_listens_leaves_its_connections_to_the_others():
    with EchoServer(host="127.0.0.1") as server:
        assert run(Plan(f"localhost:{server.addresses[0][1]}", connections=4, duration=0.1)).messages > 0
        assert server.stats()["accepted"] == 4


@pytest.mark.long
def test_an_address_that_does_not_answer_uses_only_its_share_of_the_time(monkeypatch):
    with unanswered() as dead, EchoServer(host="127.0.0.1") as server:
        lookups(monkeypatch, dead, server.addresses[0])
        with connecting("name:1", connections=AT_ONCE + 50, connect_timeout=0.6) as connector:
            before = time.monotonic()
            assert connector.connect_all(None, 1.0, None)
            # Those that begin later try the address that answers first.
            assert time.monotonic() - before < 0.6
            assert {sock.getpeername() for sock in connector.sockets} == {server.addresses[0]}


@pytest.mark.long
def test_no_answer_in_time_is_an_error_that_says_how_many_were_connected_and_what_to_do(monkeypatch):
    with (
        unanswered() as dead,
        connecting("{}:{}".format(*dead), connections=5, connect_timeout=0.2) as connector,
        pytest.raises(TimeoutError) as raised,
    ):
        connector.connect_all(None, 1.0, None)
    assert raised.value.errno == errno.ETIMEDOUT
    assert raised.value.strerror.endswith(
        "timed out; use fewer connections (-c), or spread them over more time (--ramp)"
    )


@pytest.mark.long
def test_too_few_descriptors_are_an_error_that_says_how_many_were_connected_and_what_to_do(child):
    printed = child("""if True:
        import resource
        from rioecho import EchoServer
        from rioecho.bench import Plan, run
        with EchoServer() as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
            try:
                run(Plan(f"127.0.0.1:{server.addresses[0][1]}", connections=100))
            except OSError as error:
                print(error.strerror.partition(": ")[2])
                print(error.result.error == error.strerror)
    """)
    message, same = printed.splitlines()
    assert message.startswith("Too many open files: ")
    assert message.endswith(
        " of 100 connections were made; raise the limit of open files (ulimit -n), or use fewer connections (-c)"
    )
    assert same == "True"


@pytest.mark.long
def test_the_lack_of_local_ports_is_said_with_a_remedy():
    few = "echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range"
    kept = "echo 0 > /proc/sys/net/ipv4/tcp_tw_reuse"  # else a port in TIME_WAIT may be used again after a second
    code = """if True:
        import errno
        from rioecho import EchoServer
        from rioecho.bench import Plan, run
        with EchoServer(50000, "127.0.0.1"):
            try:
                run(Plan("127.0.0.1:50000", connections=9))
            except OSError as error:
                print(error.errno == errno.EADDRNOTAVAIL, error.strerror)
            try:
                run(Plan("127.0.0.1:50000", connections=1))  # the ports are in TIME_WAIT
            except OSError as error:
                print("no local port is left" in error.strerror)
    """
    with Command(None, code=code, prelude=inside("ip link set lo up", few, kept, network=True)) as process:
        assert process.status() == 0, process.err.text
        assert process.out.text.splitlines() == [
            "True cannot connect to 127.0.0.1 port 50000: Cannot assign requested address: 4 of 9 connections were "
            "made; no local port is left: use fewer connections (-c), a server with more addresses, or more ports "
            "(sysctl net.ipv4.ip_local_port_range)",
            "True",
        ]


@pytest.mark.long
def test_connects_that_the_network_drops_are_tried_side_by_side_and_given_up_together():
    code = f"""if True:
        from rioecho._load.connector import AT_ONCE
        from rioecho.bench import Plan, run
        def sent(progress):
            with open("/proc/net/tcp") as table:  # in SYN_SENT, to 192.0.2.2
                tries.append(sum(line.split()[2:4] == ["{remote(("192.0.2.2", 7))}", "02"] for line in table))
        tries = []
        try:
            run(Plan("192.0.2.2:7", connections=300, connect_timeout=0.5), sent, 0.1)
        except TimeoutError as error:
            print(error.strerror)
            print(error.result.error == error.strerror)
        print(tries[0] == AT_ONCE)
    """
    with Command(None, code=code, prelude=inside(*SILENT_HOST, network=True)) as process:
        assert process.status() == 0, process.err.text
        assert process.out.text.splitlines() == [
            "cannot connect to 192.0.2.2 port 7: timed out; use fewer connections (-c), or spread them over more time "
            "(--ramp)",
            "True",
            "True",
        ]


@pytest.mark.long
def test_of_the_two_addresses_of_a_name_one_that_is_silent_uses_only_its_share(tmp_path):
    """Looked up in a file of hosts, and every packet to the first address is dropped."""
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.2 two.test\n127.0.0.1 two.test\n")
    code = """if True:
        import socket, time
        from rioecho import EchoServer
        from rioecho._load.connector import AT_ONCE
        from rioecho.bench import Plan, run
        found = {address[0] for *_, address in socket.getaddrinfo("two.test", 50000)}
        assert found == {"192.0.2.2", "127.0.0.1"}, found
        n = AT_ONCE + 50
        with EchoServer(50000, "127.0.0.1") as server:
            before = time.monotonic()
            result = run(Plan("two.test:50000", connections=n, connect_timeout=1, duration=0.05, warmup=0))
            print(result.messages > 0, server.stats()["accepted"] == n, 0.5 < time.monotonic() - before < 1)
    """
    own_hosts = f"mount --bind {shlex.quote(str(hosts))} /etc/hosts"
    with Command(None, code=code, prelude=inside(*SILENT_HOST, own_hosts, network=True, mounts=True)) as process:
        assert process.status() == 0, process.err.text
        assert process.out.text == "True True True\n"


@pytest.mark.long
def test_a_ramp_spreads_the_connects():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        times = []

        def accept():
            for _ in range(5):
                sock, _ = listener.accept()
                times.append(time.monotonic())
                sockets.append(sock)

        sockets = []
        accepting = Running(accept)
        with connecting("{}:{}".format(*listener.getsockname()), connections=5, ramp=0.5) as connector:
            before = time.monotonic()
            assert connector.connect_all(None, 1.0, None)
            accepting.result()
        for number, at in enumerate(times):
            assert at - before >= 0.1 * number - 0.01
        for sock in sockets:
            sock.close()


def test_a_stop_while_connecting_returns_a_result_of_nothing():
    stop = threading.Event()
    seen = []

    def report(progress):
        seen.append(progress)
        stop.set()

    with unanswered() as dead:
        result = run(Plan("{}:{}".format(*dead), connections=2, connect_timeout=SECONDS), report, 0.05, stop=stop)
    assert (result.messages, result.interrupted, result.error) == (0, True, None)
    assert result.warnings == ["stopped early: 0 of 2 connections were made"]
    assert (seen[0].connecting, seen[0].connected, seen[0].elapsed) == (True, 0, 0.0)


def test_a_full_listen_queue_of_a_unix_socket_is_waited_for(tmp_path):
    path = os.fspath(tmp_path / "echo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with connecting(f"unix:{path}", connections=8) as connector:
            done = Running(connector.connect_all, None, 1.0, None)
            sockets = [listener.accept()[0] for _ in range(8)]
            assert done.result() is True
        for sock in sockets:
            sock.close()
        with (
            connecting(f"unix:{path}", connections=8, connect_timeout=0.1) as connector,
            pytest.raises(TimeoutError, match="of 8 connections were made"),
        ):
            connector.connect_all(None, 1.0, None)


@pytest.mark.slow
def test_the_wait_for_the_last_attempts_after_an_error_uses_no_processor_time(tmp_path):
    path = os.fspath(tmp_path / "echo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with (
            connecting(f"unix:{path}", connections=8, ramp=1.5, connect_timeout=1.0) as connector,
            pytest.raises(TimeoutError),
        ):
            before, used = time.monotonic(), time.thread_time()
            connector.connect_all(None, 1.0, None)
        # The first attempt fails after a second, those begun meanwhile have up to a second more.
        assert time.monotonic() - before > 1.5
        assert time.thread_time() - used < 0.5


@pytest.mark.long
def test_no_descriptor_is_left_open_after_any_end(monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc")
    with unanswered() as dead, EchoServer(host="127.0.0.1") as server:
        run(Plan("{}:{}".format(*server.addresses[0]), connections=1, duration=0.02))
        until(lambda: server.stats()["active"] == 0)
        before = len(os.listdir("/proc/self/fd"))
        for address in (dead, ("127.0.0.1", 1), server.addresses[0]):
            with contextlib.suppress(OSError):
                run(Plan("{}:{}".format(*address), connections=9, duration=0.02, connect_timeout=0.1))
            until(lambda: len(os.listdir("/proc/self/fd")) == before)

"""rioecho-server --metrics: the counts over HTTP, read by curl and by Prometheus's own parser."""

import contextlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec

import pytest

from rioecho.server import EchoServer
from support.peers import SECONDS, Command, Server, ask, assert_waits, dial, needs_ipv6, receive_all
from support.procfs import descriptors, needs_proc, until

MODULE = "rioecho.cli.server"


def metrics_of(server):
    """Return the address that a server has logged."""
    server.err.wait_for("/metrics\n")
    host, port = re.search(r"http://(.*):([0-9]+)/metrics\n", server.err.text).groups()
    return host, int(port)


needs_package = pytest.mark.skipif(find_spec("prometheus_client") is None, reason="prometheus-client is not installed")


def get(address, path="/metrics"):
    """Return the status, the content type and the text of a page."""
    host, port = address
    try:
        with urllib.request.urlopen(f"http://{f'[{host}]' if ':' in host else host}:{port}{path}", timeout=30) as page:
            return page.status, page.headers["Content-Type"], page.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def numbers(text):
    """Return the samples of a page in the OpenMetrics format, by name."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@needs_package
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_the_metrics_are_the_stats(engine):
    with EchoServer(engine=engine, metrics=0) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        status, kind, text = get(server.metrics_address)
        assert (status, kind) == (200, "application/openmetrics-text; version=1.0.0; charset=utf-8")
        assert text.endswith("# EOF\n")
        assert numbers(text)["rioecho_active"] == 1
        assert numbers(text) == {
            f"rioecho_{name}" if name == "active" else f"rioecho_{name}_total": n for name, n in server.stats().items()
        }


@needs_package
def test_the_datagrams_are_counted():
    with EchoServer(udp=True, metrics=0) as server, socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(server.addresses[0])
        sock.send(b"x")
        sock.settimeout(SECONDS)
        assert sock.recv(10) == b"x"
        found = numbers(get(server.metrics_address)[2])
        assert (found["rioecho_datagrams_total"], found["rioecho_dropped_total"]) == (1, 0)


@needs_package
def test_healthz_fails_from_the_stop_on():
    with EchoServer(metrics=0, drain_timeout=20) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        assert get(server.metrics_address, "/healthz")[::2] == (200, "ok\n")
        server.stop()
        # The client holds its connection open, so the server drains.
        assert get(server.metrics_address, "/healthz")[::2] == (503, "stopping\n")
        assert get(server.metrics_address)[0] == 200
        sock.close()
        server.wait()
        with pytest.raises(urllib.error.URLError):
            server.close()
            get(server.metrics_address, "/healthz")


@needs_package
def test_other_pages_and_methods_are_errors():
    with EchoServer(metrics=0) as server:
        assert get(server.metrics_address, "/")[0] == 404
        with dial(server.metrics_address) as sock:
            sock.sendall(b"POST /metrics HTTP/1.0\r\n\r\n")
            assert receive_all(sock).split(b" ")[1] == b"501"


@needs_package
def test_a_client_that_sends_nothing_does_not_stop_others():
    with EchoServer(metrics=0) as server, socket.create_connection(server.metrics_address):
        assert get(server.metrics_address, "/healthz")[0] == 200


@pytest.mark.long
@needs_package
@needs_proc
def test_a_crowd_that_sends_nothing_takes_few_descriptors_and_keeps_nobody_out():
    with Server("--metrics", "0") as server, contextlib.ExitStack() as stack:
        place = metrics_of(server)
        before = len(descriptors(server.pid))
        crowd = [stack.enter_context(dial(place)) for _ in range(100)]
        for sock in crowd:
            with contextlib.suppress(ConnectionError):  # it may have been cut off already
                sock.sendall(b"GET /hea")
        assert get(place, "/healthz")[0] == 200
        until(lambda: len(descriptors(server.pid)) <= before + 16)
        with contextlib.suppress(ConnectionError):  # it was cut off, possibly with unread bytes
            receive_all(crowd[0])
        assert get(place, "/healthz")[0] == 200


@pytest.mark.long
@needs_package
@pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process")
def test_without_descriptors_a_client_waits_and_nothing_spins():
    with Server("--metrics", "0") as server:
        place = metrics_of(server)
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
        with dial(place) as sock:
            sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert_waits(server.pid, [sock])
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
            assert receive_all(sock).endswith(b"ok\n")


FORKED = """if True:
    import os, urllib.request, warnings
    from rioecho import EchoServer
    warnings.simplefilter("ignore", DeprecationWarning)  # fork() with threads
    with EchoServer(metrics=0) as server:
        host, port = server.metrics_address
        pid = os.fork()
        if pid == 0:
            server.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        print(urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=30).read().decode())
"""


@pytest.mark.long
@needs_package
def test_a_forked_child_that_closes_its_copy_leaves_the_metrics_alone(child):
    assert child(FORKED) == "ok\n\n"


@needs_package
@needs_ipv6
@pytest.mark.parametrize(("host", "first"), [("localhost", "127.0.0.1"), ("*", "0.0.0.0")])  # noqa: S104
def test_a_host_with_several_addresses_is_served_on_all(host, first):
    with EchoServer(metrics=(host, 0)) as server:
        assert server.metrics_address[0] == first
        for address in ("127.0.0.1", "::1"):
            assert get((address, server.metrics_address[1]), "/healthz")[0] == 200


@needs_package
@needs_ipv6
@pytest.mark.parametrize("place", [("::1", 0), "[::1]:0"])
def test_the_host_may_be_given(place):
    with EchoServer(metrics=place) as server:
        assert server.metrics_address[0] == "::1"
        assert get(server.metrics_address, "/healthz")[0] == 200


@needs_package
@pytest.mark.parametrize("place", ["", "x", "host:", ":1", "1:2:3", "::1", 65536, -1, "70000"])
def test_an_invalid_place_is_refused(place):
    with pytest.raises(ValueError, match=r"(?i)port|bracket"):
        EchoServer(metrics=place)


@pytest.mark.long
@needs_package
def test_a_port_in_use_is_one_line_and_status_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Command(MODULE, "0", "--metrics", port) as command:
            assert command.status() == 1
            assert f"cannot listen on 127.0.0.1 port {port} (metrics): " in command.complaint()


@pytest.mark.long
@needs_package
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_reads_the_metrics_of_the_command():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Server("--metrics", f"localhost:{port}", "--drain-timeout", "20") as server, dial(server.address) as sock:
        ask(sock)
        page = subprocess.run(
            ["curl", "-sS", "-f", f"http://localhost:{port}/metrics"], capture_output=True, check=True, text=True
        ).stdout
        assert numbers(page)["rioecho_bytes_out_total"] == 15
        health = ["curl", "-sS", "-f", f"http://localhost:{port}/healthz"]
        assert subprocess.run(health, capture_output=True, check=True).stdout == b"ok\n"
        server.signal(signal.SIGTERM)
        server.err.wait_for("Stopping")
        assert subprocess.run(health, capture_output=True, check=False).returncode == 22  # an HTTP error
        sock.close()
        assert server.status() == 0


WITHOUT = """if True:
    import sys
    sys.modules["prometheus_client"] = None  # as if it were not installed
    from rioecho.cli.server import main
    main()
"""


@pytest.mark.long
def test_a_missing_package_is_one_line():
    with Command(None, "0", "--metrics", "0", code=WITHOUT) as command:
        assert command.status() == 1
        line = command.complaint()
    assert "prometheus-client" in line
    assert "pip install 'rioecho[metrics]'" in line


INTERRUPTED = """if True:
    import os, signal, sys

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "prometheus_client":
                os.kill(os.getpid(), signal.SIGTERM)

    sys.meta_path.insert(0, Finder)
    from rioecho.cli.server import main
    main()
"""


@pytest.mark.long
def test_a_signal_while_the_package_is_imported_leaves_no_socket_file(tmp_path):
    path = tmp_path / "socket"
    with Command(None, "--unix", path, "--metrics", "0", code=INTERRUPTED) as command:
        assert command.status() == -signal.SIGTERM
        assert (command.out.text, command.err.text) == ("", "")
    assert not path.exists()


def test_the_package_is_not_imported_unless_it_is_asked_for():
    with Command(None, "0", code=WITHOUT) as command:
        command.out.wait_for("Listening")
        command.signal(signal.SIGTERM)
        assert command.status() == 0

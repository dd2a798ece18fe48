"""A rolling restart behind a load balancer: HAProxy before two servers, one of them restarted under load."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess

import pytest

from support.peers import SECONDS, Command, Server, ask, dial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed"),
]

CONFIGURATION = """\
global
    maxconn 1000
defaults
    mode tcp
    option redispatch
    retries 3
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout check 1s
frontend clients
    bind fd@{fd}
    default_backend servers
backend servers
    balance roundrobin
    default-server check inter 50ms fall 1 rise 1 {options}
    server one 127.0.0.1:{ports[0]}
    server two 127.0.0.1:{ports[1]}
"""


@contextlib.contextmanager
def haproxy(folder, ports, options):
    """Run HAProxy in TCP mode, with checks, before two servers; yield its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        path = folder / "haproxy.cfg"
        path.write_text(CONFIGURATION.format(fd=listener.fileno(), ports=ports, options=options))
        with subprocess.Popen(["haproxy", "-db", "-f", path], pass_fds=[listener.fileno()]) as process:
            try:
                yield listener.getsockname()
            finally:
                process.kill()


def understands_proxy_headers():
    done = subprocess.run(
        Command.program("rioecho.cli.server", "--help"), capture_output=True, text=True, timeout=SECONDS, check=True
    )
    return "--proxy-protocol" in done.stdout


def stopped(server):
    """Stop a server; return the number of lines that it has echoed, which its log says."""
    server.signal(signal.SIGTERM)
    assert server.status() == 0
    (total,) = re.findall(r"Stopped: .*?(\d+) lines", server.err.text)
    return int(total)


@pytest.mark.parametrize("header", ["", "send-proxy-v2"], ids=["no header", "PROXY v2"])
def test_a_restart_under_load_loses_no_message_that_a_server_has_received(tmp_path, header):
    if header and not understands_proxy_headers():
        pytest.skip("this server has no --proxy-protocol")
    options = ("--host", "127.0.0.1", *(["--proxy-protocol"] if header else []))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(*options)) for _ in range(2)]
        ports = [server.address[1] for server in servers]
        address = stack.enter_context(haproxy(tmp_path, ports, header))
        arguments = ("-c", "20", "--pipeline", "4", "-d", "5", "--warmup", "0", "--reconnect", "--json")
        bench = stack.enter_context(Command("rioecho.cli.bench", "{}:{}".format(*address), *arguments))
        bench.err.wait_for("p50")
        lines = stopped(servers[0])
        servers[0] = stack.enter_context(Server(*options, port=ports[0]))
        assert bench.status() == 0, bench.err.text
        run = json.loads(bench.out.text)
        # The connections stay where they are: the restarted server gets new ones.
        for _ in range(2):
            with dial(address) as sock:
                ask(sock)
        lines += sum(map(stopped, servers)) - 2
    assert (run["error"], run["errors"]) == (None, 0)
    assert run["reconnects"] >= 10
    assert run["lost"] <= run["reconnects"] * 4
    # Without a warm-up the histogram counts every echo that has come back.
    echoed = sum(count for _, count in run["histogram"]["counts"])
    assert echoed == lines

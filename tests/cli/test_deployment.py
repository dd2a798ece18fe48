"""The files of examples/deploy: their tools accept them, and what they start serves, passes its checks and drains."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from rioecho.cli.server import parser
from support.namespaces import inside
from support.peers import SECONDS, Command

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
COMMANDS = Path(sys.executable).parent
LOOPBACK = "ip link set lo up"

needs_commands = pytest.mark.skipif(
    not (COMMANDS / "rioecho-server").exists(), reason="the commands are not installed beside this Python"
)
needs_metrics = pytest.mark.skipif(find_spec("prometheus_client") is None, reason="prometheus-client is not installed")


def tool(name):
    """Return the path of a program, of this environment or of the system; skip the test if there is none."""
    for folder in (COMMANDS, None, "/usr/sbin"):
        if found := shutil.which(name, path=folder):
            return found
    return pytest.skip(f"{name} is not installed")


def accept(name, *arguments):
    """Check that a tool finds nothing to complain about."""
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def run(code, *arguments):
    """Run a program of Python in a network of its own, with the commands of this environment in its PATH."""
    prelude = f'PATH="{COMMANDS}:$PATH:/usr/sbin"; {inside(LOOPBACK, network=True)}'
    with Command("", *arguments, code=code, prelude=prelude) as command:
        assert command.status() == 0, command.err.text


def options_of(arguments):
    """Check a command line of rioecho-server; return the options."""
    return parser().parse_args(arguments)


def test_every_file_is_known_here():
    known = {"Containerfile", "haproxy.cfg", "kubernetes.yaml", "rioecho.service", "rioecho.socket"}
    assert {path.name for path in DEPLOY.iterdir()} == known


# ---- the container


def instructions():
    """Return the instructions of the last stage of the Containerfile, by name."""
    text = re.sub(r"^ *#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return dict(line.split(maxsplit=1) for line in text.splitlines() if line)


def image():
    """Return the command of the image and that of its health check."""
    found = instructions()
    serve = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    return serve, json.loads(found["HEALTHCHECK"].partition("CMD")[2])


def test_hadolint_accepts_the_containerfile():
    accept("hadolint", DEPLOY / "Containerfile")


def test_the_image_runs_as_a_user_without_rights_and_names_its_ports():
    found, (serve, _) = instructions(), image()
    assert int(found["USER"].partition(":")[0]) > 1000
    options = options_of(serve[1:])
    assert found["EXPOSE"].split() == [str(options.port), str(options.metrics[1])]
    assert options.host == ["*"]


@pytest.mark.long
@needs_commands
@needs_metrics
def test_the_health_check_of_the_image_passes_while_the_server_serves():
    run(
        """if True:
        import json, subprocess, sys
        serve, check = map(json.loads, sys.argv[1:])
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout.readline().startswith("Listening on 0.0.0.0:8000"), "not ready"
            assert subprocess.run(check, timeout=30).returncode == 0
            server.terminate()
            assert server.wait(30) == 0
        assert subprocess.run(check, timeout=30).returncode == 1
        """,
        *map(json.dumps, image()),
    )


# ---- systemd


@pytest.fixture
def units(tmp_path):
    """Return the paths of the units, whose program is one of this machine."""
    paths = []
    for name in ("rioecho.service", "rioecho.socket"):
        paths.append(tmp_path / name)
        paths[-1].write_text((DEPLOY / name).read_text().replace("/opt/rioecho/bin/rioecho-server", sys.executable))
    return paths


def test_systemd_accepts_the_units(units):
    accept("systemd-analyze", "verify", "--man=no", *units)


def test_the_service_is_confined(units):
    name = "systemd-analyze"
    listed = subprocess.run([tool(name), "--help"], capture_output=True, text=True, timeout=SECONDS).stdout
    if "--offline" not in listed:
        pytest.skip("this systemd cannot judge a file")
    accept(name, "security", "--no-pager", "--offline=true", "--threshold=20", units[0])  # of 100, which is unconfined


def test_systemd_waits_longer_than_the_server_drains():
    text = (DEPLOY / "rioecho.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    options = options_of(settings["ExecStart"].split()[1:])
    assert options.port is None  # the socket unit has it
    assert int(settings["TimeoutStopSec"]) > options.drain_timeout
    assert int(settings["LimitNOFILE"]) > options.max_connections


# ---- HAProxy


def test_haproxy_accepts_its_configuration():
    accept("haproxy", "-c", "-f", DEPLOY / "haproxy.cfg")


@pytest.mark.long
@needs_commands
@needs_metrics
def test_behind_haproxy_no_client_meets_a_server_that_has_stopped():
    text = (DEPLOY / "haproxy.cfg").read_text()
    servers = re.findall(r"^# +(rioecho-server .*)$", text, re.MULTILINE)
    assert len(servers) == 2
    run(
        """if True:
        import contextlib, json, signal, subprocess, sys, time
        from rioecho import connect
        proxy, *commands = map(json.loads, sys.argv[1:])
        started = []

        def say(line):
            with connect("127.0.0.1", 8000, timeout=10) as rio:
                rio.writen(line)
                return rio.readline()

        try:
            for command in commands:
                started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                assert started[-1].stdout.readline().startswith("Listening on "), "not ready"
            started.append(subprocess.Popen(proxy, stdout=subprocess.DEVNULL))
            until = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError):
                    if say(b"up\\n") == b"up\\n":
                        break
                assert time.monotonic() < until, "HAProxy does not serve"
            started[0].send_signal(signal.SIGTERM)
            assert started[0].wait(30) == 0
            for _ in range(10):
                assert say(b"hello\\n") == b"hello\\n"
        finally:
            for process in started:
                process.kill()
                process.wait()
                if process.stdout:
                    process.stdout.close()
        """,
        json.dumps([tool("haproxy"), "-db", "-q", "-f", str(DEPLOY / "haproxy.cfg")]),
        *(json.dumps(command.split()) for command in servers),
    )


# ---- Kubernetes


def test_the_manifest_is_valid():
    accept("kubernetes-validate", "--strict", DEPLOY / "kubernetes.yaml")


def test_the_pod_has_time_to_drain_and_its_probes_know_the_ports():
    yaml = pytest.importorskip("yaml")
    with contextlib.closing((DEPLOY / "kubernetes.yaml").open()) as file:
        deployment, service, budget = yaml.safe_load_all(file)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = options_of(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"echo": int(options.port), "metrics": options.metrics[1]}
    assert container["readinessProbe"]["httpGet"]["port"] == "metrics"
    assert container["livenessProbe"]["tcpSocket"]["port"] == "echo"
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + options.drain_timeout
    limit = re.fullmatch(r"(\d+)Mi", container["resources"]["limits"]["memory"])
    assert int(limit[1]) << 20 > options.max_memory
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels

"""A Rio over a paramiko.Channel to a real sshd, whose descriptor is that of an event pipe."""

import os
import random
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from rioecho import ConcurrentCall, Rio
from support.procfs import until
from support.programs import free_port

REST = 30  # seconds after which a test fails
LINES = 100_000
SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")

CONFIGURATION = """
Port {port}
ListenAddress 127.0.0.1
HostKey {place}/host
AuthorizedKeysFile {place}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel ERROR
"""


@pytest.fixture(scope="module")
def paramiko():
    return pytest.importorskip("paramiko")


def listens(port):
    """Report whether a server listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), REST).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """Start an sshd with keys of its own. Return its port and the folder of the keys."""
    if SSHD is None or not shutil.which("ssh-keygen"):
        pytest.skip("sshd is not installed")
    place = tmp_path_factory.mktemp("ssh")
    for name in "host", "user":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    port = free_port()
    configuration = place / "sshd_config"
    configuration.write_text(CONFIGURATION.format(port=port, place=place))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as the system's own service does
    with subprocess.Popen([SSHD, "-D", "-e", "-f", configuration], stderr=subprocess.PIPE) as server:
        try:
            until(lambda: server.poll() is not None or listens(port), "sshd")
            if server.poll() is not None:
                pytest.skip(f"sshd does not start here: {server.stderr.read().decode()}")
            yield port, place
        finally:
            server.terminate()


@pytest.fixture
def run(paramiko, sshd):
    """Return a function that runs a command over ssh and returns its channel."""
    port, place = sshd
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    client.connect(
        "127.0.0.1", port, user, key_filename=str(place / "user"), look_for_keys=False, allow_agent=False, timeout=REST
    )

    def start(command):
        channel = client.get_transport().open_session(timeout=REST)
        channel.exec_command(command)
        return channel

    yield start
    client.close()


@pytest.mark.long
def test_a_channel_is_read_and_written_through_its_own_methods(run):
    channel = run("cat")
    rio = Rio(channel, timeout=REST)
    rio.write(b"one\ntwo\n")
    assert [rio.readline(), rio.readline()] == [b"one\n", b"two\n"]
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.05)
    assert 0.05 <= time.monotonic() - start < REST
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    assert channel.gettimeout() is None
    assert channel._pipe is None  # nothing has asked for its descriptor
    rio.writen(b"three\nfour")
    channel.shutdown_write()
    assert list(rio) == [b"three\n", b"four"]
    assert rio.detach() == (channel, b"")
    channel.close()


def test_a_channel_that_was_closed_takes_no_output(run):
    channel = run("cat")
    rio = Rio(channel, timeout=REST)
    channel.close()
    with pytest.raises(OSError, match="closed"):
        rio.writen(b"x")
    assert rio.readline() == b""


@pytest.mark.long
def test_a_full_window_ends_a_write_in_time_and_the_rest_can_be_sent(run, background):
    channel = run("sleep 0.3; cat")
    rio = Rio(channel, timeout=REST)
    data = random.Random(1).randbytes(8 << 20)
    with pytest.raises(TimeoutError) as caught:
        rio.writen(data, timeout=0.1)
    sent = caught.value.characters_written
    assert 0 < sent < len(data)
    background(rio.writen, memoryview(data)[sent:])
    assert rio.readexactly(len(data)) == data
    channel.close()


@pytest.mark.long
def test_one_reader_and_one_writer_share_a_channel(run, background):
    channel = run("cat")
    rio = Rio(channel, timeout=REST)
    expected = b"".join(b"%09d\n" % n for n in range(50_000))
    got = []
    reader = background(lambda: got.append(rio.readexactly(len(expected))))
    while channel.gettimeout() is None:  # the reader sets it while it waits
        os.sched_yield()
    with pytest.raises(ConcurrentCall):
        rio.readline()
    for n in range(50_000):
        rio.write(b"%09d\n" % n)
        if n % 1000 == 0:
            rio.flush()
    rio.flush()
    reader.join(REST)
    assert got == [expected]
    assert channel.gettimeout() is None
    channel.close()


@pytest.mark.slow
def test_100000_lines_with_timeouts_in_their_middle_arrive_whole(run, background):
    channel = run("cat")
    chance = random.Random(7)
    expected = [b"%d " % number + b"x" * chance.randrange(40) + b"\n" for number in range(LINES)]
    rio = Rio(channel)

    waited = threading.Event()

    def send():
        data = memoryview(b"".join(expected))
        steps = 0
        while data:
            steps += 1
            if steps % 10 == 0:
                assert waited.wait(REST)
                waited.clear()
            try:
                rio.writen(data[:20_000], timeout=0.01)
                data = data[20_000:]
            except TimeoutError as error:
                data = data[error.characters_written :]
        channel.shutdown_write()

    background(send)
    got = []
    broken = {BlockingIOError: 0, TimeoutError: 0}
    while True:
        try:
            line = rio.readline(timeout=chance.choice([0.002, 0.0005, 0]))
        except (TimeoutError, BlockingIOError) as error:
            broken[type(error)] += 1
            if isinstance(error, TimeoutError):
                waited.set()
        else:
            if not line:
                break
            got.append(line)
    assert got == expected
    assert all(broken.values()), broken
    assert channel.gettimeout() is None
    channel.close()

"""examples/chat.py, run as a program with real clients."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import rioecho
from rioecho import Rio
from support.peers import SECONDS

ROOT = Path(__file__).parents[2]
CHAT = ROOT / "examples" / "chat.py"


@pytest.fixture
def chat():
    """Run the chat; yield a function that enters it under a name and returns the client's Rio."""
    environment = os.environ | {"PYTHONPATH": str(Path(rioecho.__file__).parents[1])}
    command = [sys.executable, "-P", "-W", "error", str(CHAT), "0"]
    with (
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        try:
            port = int(process.stdout.readline().split()[-1])

            def enter(name):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS))
                rio = Rio(sock, timeout=SECONDS)
                rio.writen(name + b"\n")
                return rio

            yield enter
        finally:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=SECONDS)
        assert "Unhandled" not in said
        assert said.rstrip().endswith("KeyboardInterrupt"), said


def meet(*members):
    """Wait until each member is known to the others: lines come back only from those who have entered."""
    for number, member in enumerate(members):
        for other in members:
            if other is not member:
                while True:
                    member.writen(b"hello %d\n" % number)
                    with contextlib.suppress(TimeoutError):
                        other.fill(timeout=0.05)
                        break
    for member in members:
        member.writen(b"done\n")
    for member in members:
        done = 0
        while done < len(members) - 1:
            done += member.readline().endswith(b": done\n")


@pytest.mark.long
def test_what_a_member_says_goes_to_all_others_with_its_name(chat):
    ann, bob, eve = chat(b"ann"), chat(b"bob"), chat(b"eve")
    meet(ann, bob, eve)
    ann.writen(b"hi\nall\n")
    for other in (bob, eve):
        assert other.readline() == b"ann: hi\n"
        assert other.readline() == b"ann: all\n"
    bob.writen(b"hi ann\n")
    assert ann.readline() == b"bob: hi ann\n"
    assert eve.readline() == b"bob: hi ann\n"


@pytest.mark.long
def test_a_member_that_leaves_or_says_too_much_does_not_disturb_the_others(chat):
    ann, bob, eve = chat(b"ann"), chat(b"bob"), chat(b"eve")
    meet(ann, bob, eve)
    eve.writen(b"x" * 2000)
    assert eve.readlines() in ([], [b""])
    bob.write_eof()
    assert bob.readline() == b""
    zoe = chat(b"zoe")
    meet(ann, zoe)
    ann.writen(b"still here\n")
    assert zoe.readline() == b"ann: still here\n"


@pytest.mark.slow
def test_a_member_that_takes_nothing_is_put_out_and_the_others_go_on(chat):
    ann, bob, deaf = chat(b"ann"), chat(b"bob"), chat(b"deaf")
    meet(ann, bob, deaf)
    said = b"x" * 900 + b"\n"
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        while True:  # until its socket and the server's are full, and five seconds have passed
            for _ in range(100):
                ann.writen(said)
            for _ in range(100):
                assert bob.readline() == b"ann: " + said
            deaf.writen(b"?")
    ann.writen(b"over\n")
    assert bob.readline() == b"ann: over\n"

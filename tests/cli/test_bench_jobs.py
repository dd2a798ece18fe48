"""rioecho-bench as a job of a shell: Ctrl-Z, in the background, and when its terminal is closed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from support.loads import MODULE, unanswered
from support.peers import SECONDS, Command, Output, Screen
from support.procfs import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]
CTRL_Z = b"\x1a"
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"
ON_TERMINAL = f"""if True:
    import fcntl, runpy, termios
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)
    runpy.run_module({MODULE!r}, run_name="__main__")
"""


class Shell:
    """An interactive bash with job control on a terminal of its own."""

    def __init__(self):
        master, slave = os.openpty()
        environment = os.environ | {"TERM": "xterm-256color", "PS1": "ready> ", "LC_ALL": "C.UTF-8", "COLUMNS": "80"}
        code = (
            "import fcntl, os, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "os.execvp('bash', ['bash', '--norc', '-i'])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        self.keyboard = os.dup(master)
        self.screen = Output(Screen(master))

    def __enter__(self):
        self.screen.wait_for("ready> ")
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.type(b"\nexit\nexit\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SECONDS)
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)
        self.screen.join()

    def type(self, keys):
        os.write(self.keyboard, keys)

    def bench(self, *arguments, end="\n"):
        command = [sys.executable, "-W", "error", "-m", MODULE, *arguments]
        self.type(" ".join(command).encode() + end.encode())

    def cursor_is_shown(self):
        return self.screen.data.rfind(SHOW) >= self.screen.data.rfind(HIDE)


def test_ctrl_z_shows_the_cursor_and_nothing_is_drawn_in_the_background(target):
    pytest.importorskip("rich", reason="the extra 'bench' is not installed")
    with Shell() as shell:
        shell.bench(target, "-c", "4", "-d", "2.5", "--warmup", "0")
        shell.screen.wait_for("p99")
        assert not shell.cursor_is_shown()
        shell.type(CTRL_Z)
        shell.screen.wait_for("Stopped")
        assert shell.cursor_is_shown()
        drawn = len(shell.screen.data)
        shell.type(b"bg\n")
        shell.screen.wait_for("p99.9")  # the table
        after = shell.screen.data[drawn:]
        assert HIDE not in after
        assert b"\x1b[2K" not in after  # erases a line
        assert b"Traceback" not in after


def test_a_view_that_was_stopped_comes_back_in_the_foreground(target):
    pytest.importorskip("rich", reason="the extra 'bench' is not installed")
    with Shell() as shell:
        shell.bench(target, "-c", "4", "-d", "2.5", "--warmup", "0")
        shell.screen.wait_for("p99")
        shell.type(CTRL_Z)
        shell.screen.wait_for("Stopped")
        shell.type(b"fg\n")
        shell.screen.wait_for(HIDE, times=2)
        shell.screen.wait_for("p99.9")
        assert shell.cursor_is_shown()


def test_a_test_that_is_started_in_the_background_draws_nothing(target):
    with Shell() as shell:
        shell.bench(target, "-c", "4", "-d", "1", end=" &\n")
        shell.screen.wait_for("p99.9")
        assert HIDE not in shell.screen.data
        assert b"\x1b[2K" not in shell.screen.data


def test_a_closed_terminal_ends_the_test_which_keeps_its_results(target, tmp_path):
    path = tmp_path / "run.json"
    master, slave = os.openpty()
    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    arguments = (target, "-c", "4", "-d", "60", "--warmup", "0", "--json", path)
    with Command(
        MODULE, *arguments, code=ON_TERMINAL, start_new_session=True, environment={"TERM": "xterm"}, **streams
    ) as bench:
        os.close(slave)
        screen = b""
        while b"p99" not in screen:
            screen += os.read(master, 1 << 16)
        os.close(master)
        assert bench.process.wait(SECONDS) == 129
    run = json.loads(path.read_text())
    assert run["interrupted"] is True
    assert run["messages"] > 0
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice at once"])
def test_a_hang_up_signal_is_status_129_with_the_results(target, again):
    with Command(MODULE, target, "-c", "4", "-d", "60", "--warmup", "0", "--json") as bench:
        bench.err.wait_for("p50")
        for _ in range(1 + again):
            bench.signal(signal.SIGHUP)
        assert bench.process.wait(SECONDS) == 129
        bench.status()
        assert bench.err.text.splitlines()[-1] == "rioecho-bench: hung up"
        run = json.loads(bench.out.text)
    assert (run["interrupted"], run["error"]) == (True, None)
    assert run["messages"] > 0


def test_under_nohup_a_hang_up_is_ignored(target):
    arguments = (target, "-c", "4", "-d", "1.5", "--warmup", "0", "--json")
    with Command(MODULE, *arguments, prelude="trap '' HUP") as bench:
        bench.err.wait_for("p50")
        bench.signal(signal.SIGHUP)
        assert bench.status() == 0
        assert json.loads(bench.out.text)["interrupted"] is False


def test_a_signal_while_connecting_keeps_the_json():
    with (
        unanswered() as dead,
        Command(MODULE, "{}:{}".format(*dead), "--json", "--connect-timeout", "60") as bench,
    ):
        bench.err.wait_for("connecting: 0 of 50\n")
        bench.signal(signal.SIGINT)
        assert bench.process.wait(SECONDS) == 130
        bench.status()
        assert json.loads(bench.out.text)["interrupted"] is True
        until(lambda: bench.err.text.endswith("rioecho-bench: interrupted\n"))

"""rioecho-server and its terminal: in the background, when the terminal is closed, and Ctrl-C at the start."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys

import pytest

from support.peers import SECONDS, Command, Running, acknowledged, ask, dial, lines, receive_all

MODULE = "rioecho.cli.server"


class Terminal:
    """A server that shell code starts as "$@", with a terminal of its own as its controlling terminal."""

    def __init__(self, script, *arguments):
        self._master, slave = os.openpty()
        tty = os.ttyname(slave)
        command = [sys.executable, "-W", "error", "-m", MODULE, *arguments]
        shell = ["/bin/sh", "-c", f"exec <{tty} >{tty} 2>&1; {script}", "sh", *command]
        self.process = subprocess.Popen(shell, start_new_session=True)
        self.text = ""
        self.wait_for("Listening on")  # the shell has opened it by then
        os.close(slave)
        while not (ready := re.search(r"Listening on 127.0.0.1:(\d+), [^\n]*\n", self.text)):
            self.read()
        self.address = "127.0.0.1", int(ready[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)
        self.close()

    def wait_for(self, words, times=1):
        """Wait until the terminal shows the words this many times."""
        while self.text.count(words) < times:
            self.read()

    def read(self):
        """Wait for more output."""
        assert select.select([self._master], [], [], SECONDS)[0], self.text
        self.text += os.read(self._master, 1 << 16).decode()

    def close(self):
        """Hang up."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


@pytest.mark.long
@pytest.mark.skipif(shutil.which("stty") is None, reason="stty is not installed")
def test_a_server_in_the_background_serves_after_stty_tostop():
    """Its log lines would otherwise stop it."""
    script = 'set -m; stty tostop; "$@" & echo "pid $!."; wait "$!"; echo "status $?."'
    with Terminal(script, "0", "-v") as terminal:
        for _ in range(3):
            with dial(terminal.address) as sock:
                ask(sock)
        terminal.wait_for("server received", 3)
        os.kill(int(re.search(r"pid (\d+)\.", terminal.text)[1]), signal.SIGTERM)
        terminal.wait_for("Stopped: 3 accepted")
        terminal.wait_for("status 0.")


@pytest.mark.long
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_closing_the_terminal_stops_the_server_in_good_order(tmp_path, engine):
    path = tmp_path / "socket"
    data = b"".join(lines(20_000))
    with Terminal('exec "$@"', "0", "--unix", str(path), "--engine", engine) as terminal:
        with dial(terminal.address) as sock:
            ask(sock)
            sending = Running(sock.sendall, data)
            acknowledged(sock)
            terminal.close()
            back = receive_all(sock)
            assert data.startswith(back)
            with contextlib.suppress(ConnectionError):
                sending.result()
        assert terminal.process.wait(SECONDS) == 0
    assert not path.exists()


INTERRUPT = """if True:
    import os, signal, sys

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == WHERE:
                os.kill(os.getpid(), signal.SIGINT)

    sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("where", ["rioecho.rio", "rioecho.cli", "logging", "rioecho._server.udp"])
def test_an_interrupt_while_the_command_is_imported_prints_no_traceback(tmp_path, where):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT.replace("WHERE", repr(where)))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with Command(MODULE, "0", environment={"PYTHONPATH": path}) as command:
        assert command.status() == -signal.SIGINT
        assert command.err.text == ""


def test_an_interrupt_while_a_program_imports_the_command_is_its_own():
    code = "import signal, rioecho.cli.server; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    with Command("", code=code) as command:
        assert command.status() == 0
        assert command.out.text == "True\n"

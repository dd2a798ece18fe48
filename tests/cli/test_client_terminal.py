"""rioecho-client on a terminal: a prompt with editing and history, and how the client exits."""

import contextlib
import os
import signal
import subprocess
import termios
import threading

import pytest

from rioecho.server import EchoServer
from support.peers import SECONDS, Command, Output, Screen, answering, receive, receive_all, reset

MODULE = "rioecho.cli.client"
ON_TERMINAL = f"""if True:
    import fcntl, runpy, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    runpy.run_module({MODULE!r}, run_name="__main__")
"""
WITHOUT_READLINE = f"import sys; sys.modules['readline'] = None\n{ON_TERMINAL}"
CTRL_C, CTRL_D, UP, LEFT = b"\x03", b"\x04", b"\x1b[A", b"\x1b[D"


@pytest.fixture
def address():
    with EchoServer() as running:
        yield running.addresses[0]


class Terminal(Command):
    """The client on a terminal of its own: ``type()`` is its keyboard, ``screen`` collects its output."""

    def __init__(self, *arguments, code=ON_TERMINAL, **options):
        master, slave = os.openpty()
        self.found = termios.tcgetattr(slave)
        try:
            # In a session of its own the terminal becomes the controlling terminal, so that Ctrl-C is a signal.
            streams = {"stdin": slave, "stdout": slave, "stderr": slave} | options
            super().__init__(MODULE, *arguments, code=code, start_new_session=True, **streams)
        finally:
            os.close(slave)
        self.keyboard = os.dup(master)
        self.screen = Output(Screen(master))

    def __exit__(self, *_):
        super().__exit__()
        os.close(self.keyboard)
        self.screen.join()

    def type(self, keys):
        os.write(self.keyboard, keys)

    def interrupt(self):
        """Type Ctrl-C until the client exits: Python can miss one that arrives just before it waits for a key."""
        for _ in range(5):
            self.type(CTRL_C)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(2)
        return None


def test_a_line_is_prompted_for_and_its_echo_is_printed(address):
    with Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"hello\n")
        terminal.screen.wait_for("hello\r\n", times=2)  # as typed, and as echoed
        terminal.screen.wait_for("> ", times=2)
        terminal.type(CTRL_D)
        assert terminal.status() == 0


def test_arrow_up_recalls_the_last_line_for_editing(address):
    with Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"first\n")
        terminal.screen.wait_for("> ", times=2)
        terminal.type(UP + b"\n")
        terminal.screen.wait_for("\r\nfirst\r\n", times=2)
        terminal.screen.wait_for("> ", times=3)
        terminal.type(UP + LEFT + LEFT + b"__\n")
        terminal.screen.wait_for("\r\nfir__st\r\n> ")
        terminal.type(CTRL_D)
        assert terminal.status() == 0


def test_a_python_without_readline_has_a_plain_prompt(address):
    with Terminal(*address, code=WITHOUT_READLINE) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"hello\n")
        terminal.screen.wait_for("hello\r\n", times=2)
        terminal.screen.wait_for("> ", times=2)
        terminal.type(CTRL_D)
        assert terminal.status() == 0
    assert b"Traceback" not in terminal.screen.data


def test_text_that_is_not_ascii_is_echoed(address):
    with Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type("grüße ∀\n".encode())
        terminal.screen.wait_for("\r\ngrüße ∀\r\n> ")
        terminal.type(CTRL_D)
        assert terminal.status() == 0


def test_ctrl_d_at_once_is_status_0(address):
    with Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.status() == 0
        assert b"Traceback" not in terminal.screen.data


@pytest.mark.long
def test_ctrl_c_is_status_130_and_no_traceback(address):
    with Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"half a li")
        terminal.screen.wait_for("> half a li")
        assert terminal.interrupt() == 130
    assert b"Traceback" not in terminal.screen.data


def test_ctrl_c_during_the_wait_for_an_echo_is_status_130():
    def ignore(sock):
        receive_all(sock)

    with answering(ignore) as address, Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"hello\n")
        terminal.screen.wait_for("hello\r\n")
        assert terminal.interrupt() == 130
    assert b"Traceback" not in terminal.screen.data


def test_the_settings_of_the_terminal_are_restored(address):
    with Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        assert termios.tcgetattr(terminal.keyboard) != terminal.found
        terminal.type(CTRL_D)
        assert terminal.status() == 0
        assert termios.tcgetattr(terminal.keyboard) == terminal.found


def test_a_wrong_echo_is_status_3():
    def lie(sock):
        receive(sock, 6)
        sock.sendall(b"hallo\n")
        receive_all(sock)

    with answering(lie) as address, Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"hello\n")
        assert terminal.status() == 3
    assert b"wrong echo" in terminal.screen.data


def test_a_close_by_the_server_is_status_1():
    with answering(lambda sock: receive(sock, 6)) as address, Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"hello\n")
        assert terminal.status() == 1
    assert b"rioecho-client: " in terminal.screen.data
    assert b"Traceback" not in terminal.screen.data


@pytest.mark.parametrize("how", ["close", "reset", "unasked bytes"])
@pytest.mark.parametrize("code", [ON_TERMINAL, WITHOUT_READLINE], ids=["readline", "plain"])
def test_the_prompt_notices_at_once_what_the_server_does(how, code):
    seen = threading.Event()

    def talk(sock):
        sock.sendall(receive(sock, 6))
        assert seen.wait(SECONDS)
        if how == "reset":
            reset(sock)
        elif how == "unasked bytes":
            sock.sendall(b"surprise")
            receive_all(sock)

    with answering(talk) as address, Terminal(*address, code=code) as terminal:
        terminal.screen.wait_for("> ")
        terminal.type(b"hello\n")
        terminal.screen.wait_for("> ", times=2)
        terminal.type(b"half a li")
        terminal.screen.wait_for("half a li")
        seen.set()
        assert terminal.process.wait(SECONDS) == (3 if how == "unasked bytes" else 1)
        assert termios.tcgetattr(terminal.keyboard) == terminal.found
    last = terminal.screen.text.splitlines()[-1]
    if how == "unasked bytes":
        assert last == "rioecho-client: wrong echo: the byte at offset 0 is not what was sent"
    else:
        assert last == "rioecho-client: the server closed the connection; 0 bytes were not echoed"
    assert b"Traceback" not in terminal.screen.data


#: The client, which at its prompt is a user that may have no more processes and threads than this one.
WITHOUT_THREADS = """if True:
    import fcntl, os, readline, resource, termios
    from rioecho.cli import client
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    converse = client._converse

    def without_threads(rio):
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.getuid() or os.setuid(54321)  # a limit does not hold for root
        converse(rio)

    client._converse = without_threads
    client.main()
"""


@pytest.mark.skipif(
    os.environ.get("RIOECHO_BUILD") in ("sanitize", "coverage"),
    reason="at the exit LeakSanitizer needs a process, and gcov files that another user may not write",
)
def test_without_a_thread_to_be_had_it_is_one_line_and_status_1(address):
    with Terminal(*address, code=WITHOUT_THREADS) as terminal:
        assert terminal.process.wait(SECONDS) == 1
    assert terminal.screen.text.splitlines() == ["rioecho-client: can't start new thread"]


def test_a_hang_up_of_the_terminal_ends_it(address):
    with Terminal(*address) as terminal:
        terminal.screen.wait_for("> ")
        terminal.signal(signal.SIGHUP)
        assert terminal.process.wait(SECONDS) in (-signal.SIGHUP, 0, 1)


def test_an_output_that_is_not_a_terminal_gets_only_the_echo(address, tmp_path):
    with open(tmp_path / "out", "wb") as output, Terminal(*address, stdout=output) as terminal:
        terminal.type(b"hello\n" + CTRL_D)
        assert terminal.status() == 0
    assert (tmp_path / "out").read_bytes() == b"hello\n"

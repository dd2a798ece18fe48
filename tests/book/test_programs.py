"""Programs of chapters 10 to 12, typed from the book line by line: real processes, threads, signals and sockets.

The echo servers, the client and the Tiny of examples/ have tests of their own.
"""

# ruff: noqa: F811, the fixtures are imported

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from rioecho import connect
from support.programs import EXAMPLES, LONG, Server, accepting, free_port, run, start  # noqa: F401, a fixture

PROGRAMS = Path(__file__).parents[1] / "support" / "book_programs"


def typed(name, *args):
    return [sys.executable, "-X", "dev", "-W", "error", str(PROGRAMS / f"{name}.py"), *map(str, args)]


@pytest.fixture
def folder(tmp_path):
    """Return a directory with the files that the practice problems read."""
    for name in ("foo.txt", "baz.txt", "foobar.txt"):
        (tmp_path / name).write_text("foobar")
    return tmp_path


@pytest.fixture
def serve(start):
    """Return a function that starts a server of the book and waits until it has accepted a client."""

    def serve(name, **options):
        port = free_port()
        child = start(typed(name, port), **options)
        accepting(child, "127.0.0.1", port)
        return Server(child, port)

    return serve


# System-level I/O


@pytest.mark.parametrize("name", ["cpstdin", "cpfile"])
def test_standard_input_is_copied_to_standard_output(name):
    data = b"one\n\ntw\0o\n\xff last" if name == "cpstdin" else random.Random(1).randbytes(100_000) + b"last"
    assert run(typed(name), data) == (0, data, b"")


@pytest.mark.long
def test_statcheck_reports_type_and_access(folder):
    for path, said in ((folder, b"directory"), (folder / "foo.txt", b"regular"), ("/dev/null", b"other")):
        assert run(typed("statcheck", path)) == (0, b"type: %s, read: yes\n" % said, b"")
    assert run(typed("statcheck", folder / "none")) == (1, b"", b"Stat error: No such file or directory\n")


@pytest.mark.long
def test_readdir_finds_every_file(folder):
    status, out, err = run(typed("readdir", folder))
    assert (status, err) == (0, b"")
    found = {line.removeprefix(b"Found file: ") for line in out.splitlines()}
    assert found == {b".", b"..", b"foo.txt", b"baz.txt", b"foobar.txt"}
    assert run(typed("readdir", folder / "none")) == (1, b"", b"Opendir error: No such file or directory\n")


@pytest.mark.parametrize(
    ("name", "said"), [("ffiles1", "fd2 = 3"), ("ffiles2", "c = f"), ("ffiles3", "c = o"), ("ffiles4", "c = o")]
)
def test_practice_problems_on_descriptors_have_the_book_s_answers(folder, name, said):
    assert run(typed(name), cwd=folder) == (0, f"{said}\n".encode(), b"")


# Network programming


@pytest.mark.slow
def test_addresses_are_converted():
    assert run(typed("hex2dd", "0x8002c2f2")) == (0, b"128.2.194.242\n", b"")
    assert run(typed("dd2hex", "128.2.194.242")) == (0, b"0x8002c2f2\n", b"")
    status, _, err = run(typed("dd2hex", "128.2.194"))
    assert (status, err) == (1, b"inet_pton error: invalid dotted-decimal address\n")


@pytest.mark.long
def test_hostinfo_prints_the_addresses_of_a_name():
    assert run(typed("hostinfo", "localhost")) == (0, b"127.0.0.1\n", b"")
    status, out, err = run(typed("hostinfo", "no host"))
    assert (status, out) == (1, b"")
    assert err.startswith(b"Getaddrinfo error: ")


@pytest.mark.long
def test_server_of_the_basic_calls_echoes_and_lets_its_port_be_used_again_at_once(serve, start):
    server = serve("sockets_server")
    with server.connect() as rio:
        rio.writen(b"12345678")
        assert rio.read(8) == b"12345678"
        server.child.kill()  # the server closes first, so that its side is in TIME_WAIT
        server.child.wait(LONG)
        assert rio.read() == b""
    again = start(typed("sockets_server", server.port))
    accepting(again, "127.0.0.1", server.port)


@pytest.mark.long
def test_tiny_as_typed_serves_static_and_dynamic_content(serve, tmp_path):
    home = shutil.copytree(EXAMPLES / "tiny-home", tmp_path / "home")
    server = serve("tiny_typed", cwd=home)

    def get(uri):
        with connect("127.0.0.1", server.port, timeout=LONG) as rio:
            rio.writen(b"GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n" % uri)
            return rio.read()

    for _ in range(2):
        assert get(b"/").endswith((home / "home.html").read_bytes())
        answer = get(b"/cgi-bin/adder.py?15000&213")
        assert answer.startswith(b"HTTP/1.0 200 OK\r\nServer: Tiny Web Server\r\n")
        assert b"15213" in answer
        assert get(b"/none").startswith(b"HTTP/1.0 404 Not found\r\n")


# Concurrent programming


def test_select_takes_commands_between_clients(serve):
    server = serve("select_server")
    server.child.stdin.write(b"first\n")
    assert server.child.output.readline() == b"first\n"
    with server.connect() as rio:
        rio.writen(b"hello\n")
        assert rio.readline() == b"hello\n"
    server.child.stdin.write(b"second\n")
    assert server.child.output.readline() == b"second\n"
    assert server.child.communicate(timeout=LONG) == (b"", b"")  # closes its standard input
    assert server.child.returncode == 0


THREADED = {
    "hello": ((), "Hello, world!\n"),
    "hellobug": ((), ""),
    "goodcnt": ((20_000,), "OK cnt=40000\n"),
    "psum_mutex": ((4, 14), "OK: result=134209536\n"),
    "psum_local": ((4, 16), "OK: result=2147450880\n"),
    "readers_writers": ((), "data=1000 wrong=0\n"),
}


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", THREADED)
def test_threaded_program_prints_what_the_book_says(name):
    if os.environ.get("RIOECHO_BUILD") == "sanitize" and name == "hellobug":
        pytest.skip("LeakSanitizer aborts a process that ends without finalizing Python")
    arguments, said = THREADED[name]
    assert run(typed(name, *arguments)) == (0, said.encode(), b"")


def test_sharing_prints_both_messages_and_counts_them_though_main_ends_first():
    status, out, err = run(typed("sharing"))
    assert (status, err) == (0, b"")
    lines = sorted(out.decode().splitlines(), key=lambda line: line[-2])
    assert [line.partition(" (")[2] for line in lines] == ["cnt=1)", "cnt=2)"]
    assert {line.partition(" (")[0] for line in lines} == {"[0]: Hello from foo", "[1]: Hello from bar"}


def test_badcnt_runs_to_its_end():
    status, out, err = run(typed("badcnt", 10_000))
    assert (status, err) == (0, b"")
    assert out.startswith((b"OK cnt=20000", b"BOOM! cnt="))


def test_norace_prints_every_number_once():
    status, out, err = run(typed("norace"))
    assert (status, err) == (0, b"")
    assert sorted(out.splitlines()) == [b"Hello from thread %d" % i for i in range(4)]


@pytest.mark.slow
def test_exit_in_a_thread_ends_the_process_with_its_status_and_output():
    for status, call in ((0, "exit(0)"), (3, "exit(3)"), (0, "exit()"), (1, "exit('reason')")):
        code = f"""
from rioecho.csapp import *
def thread(vargp):
    print("output", end="")
    {call}
Pthread_create(thread)
Pthread_exit()
"""
        said = b"reason\n" if "reason" in call else b""
        assert run([sys.executable, "-X", "dev", "-W", "error", "-P", "-c", code]) == (status, b"output", said)


def test_a_wrapper_that_fails_in_a_thread_of_the_book_ends_the_process():
    code = """
from rioecho.csapp import *
Pthread_create(Close, 12345)
P(Sem_init(0))
"""
    assert run([sys.executable, "-P", "-c", code]) == (1, b"", b"Close error: Bad file descriptor\n")


def test_ctrl_c_ends_a_program_that_waits_for_its_threads(start):
    code = """
from rioecho.csapp import *
Signal(SIGINT, SIG_DFL)
Pthread_create(P, Sem_init(0))
print("waiting", flush=True)
Pthread_exit()
"""
    child = start([sys.executable, "-P", "-c", code])
    assert child.output.readline() == b"waiting\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(LONG) == -signal.SIGINT

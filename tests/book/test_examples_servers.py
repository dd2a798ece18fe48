"""The concurrent echo servers of examples/, run as programs: their common behaviour, then that of each."""

# ruff: noqa: F811, the fixtures are imported

import contextlib
import importlib.util
import re
import resource
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from support.peers import reset
from support.programs import EXAMPLES, LONG, OTHERS, command, other, run, serve, start  # noqa: F401, fixtures

PROCESSES, SELECT, THREADS, PRETHREADED = SERVERS = [
    "echoserverp.py",
    "echoservers.py",
    "echoservert.py",
    "echoservert_pre.py",
]
NTHREADS = 4  # of the prethreaded server


@pytest.fixture(params=SERVERS)
def server(request, serve):
    return serve(request.param)


def ask(rio, line):
    """Send a line and receive its echo, which shows that the server is serving this client."""
    rio.writen(line)
    if (answer := rio.readline()) == b"":
        raise ConnectionError("the server has closed the connection")
    assert answer == line


def counted(server, count):
    """Read the server's output for this many lines. Returns their sizes, and the totals if it prints them."""
    sizes, totals = [], []
    for line in server.lines(count):
        found = re.fullmatch(r"[Ss]erver received (\d+)(?: \((\d+) total\))? bytes(?: on fd \d+)?", line)
        assert found, line
        sizes.append(int(found[1]))
        totals += [int(found[2])] if found[2] else []
    return sizes, totals


# All servers


@pytest.mark.long
@pytest.mark.sampled(1)
def test_client_of_the_book_receives_its_lines(server):
    text = b"one\n\n\xc3\xa4\xff\n" + b"x" * 8190 + b"\n" + b"y" * 20000 + b"\n"
    assert run(command("echoclient.py", "127.0.0.1", server.port), text) == (0, text, b"")
    assert counted(server, 7)[0] == [4, 1, 4, 8191, 8191, 8191, 3619]
    assert server.end() == b""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", OTHERS)
def test_other_clients_receive_their_lines_and_an_unterminated_last_line(server, name):
    text = b"hello\nworld\nand no newline"
    status, out, _ = run(other(name, "127.0.0.1", server.port), text)
    assert (status, out) == (0, text)
    assert counted(server, 3)[0] == [6, 6, 14]
    assert server.end() == b""


@pytest.mark.sampled(2)
def test_partial_line_of_one_client_does_not_block_another(server):
    with server.connect() as first, server.connect() as second:
        ask(first, b"whole\n")
        first.writen(b"ha")
        ask(second, b"one\n")
        first.writen(b"lf")
        ask(second, b"two\n")
        with pytest.raises(BlockingIOError):
            first.readline(timeout=0)
        first.writen(b"\n")
        assert first.readline() == b"half\n"
    assert counted(server, 4)[0] == [6, 4, 4, 5]


@pytest.mark.sampled(2)
def test_lines_that_arrive_together_are_all_echoed_before_more_is_sent(server):
    with server.connect() as rio:
        rio.writen(b"one\n\nthree\nfo")
        assert [rio.readline() for _ in range(3)] == [b"one\n", b"\n", b"three\n"]
        rio.writen(b"ur\n")
        assert rio.readline() == b"four\n"


@pytest.mark.long
@pytest.mark.sampled(1)
def test_concurrent_clients_of_several_programs_receive_their_own_lines(server, start):
    clients = [start(command("echoclient.py", "127.0.0.1", server.port)) for _ in range(2)]
    clients += [start(other(name, "127.0.0.1", server.port)) for name in OTHERS]
    assert len(clients) <= NTHREADS
    for turn in range(10):
        for number, client in enumerate(clients):
            client.stdin.write(b"client %d turn %d\n" % (number, turn))
        for number, client in enumerate(clients):
            assert client.output.readline() == b"client %d turn %d\n" % (number, turn)
    for client in clients:
        assert client.communicate(timeout=LONG)[0] == b""
        assert client.returncode == 0
    sizes, totals = counted(server, 40)
    assert sizes == [16] * 40
    assert totals in ([], list(range(16, 641, 16)))
    assert server.end() == b""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("args", [[], ["80", "90"]], ids=["none", "two"])
def test_wrong_number_of_arguments_prints_the_usage_and_exits_with_status_1(name, args):
    assert run(command(name, *args)) == (1, b"", f"usage: {name} <port>\n".encode())


@pytest.mark.long
@pytest.mark.sampled(1)
def test_port_in_use_exits_with_status_1_and_names_the_port(server):
    status, out, err = run([*server.child.args[:-1], str(server.port)])
    assert (status, out) == (1, b"")
    assert err.startswith(f"Open_listenfd error: cannot listen on port {server.port}: ".encode())
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("name", [SELECT, THREADS, PRETHREADED])
def test_reset_by_a_client_ends_the_server_with_status_1(serve, name):
    server = serve(name)
    rio = server.connect()
    ask(rio, b"hello\n")
    reset(rio.detach()[0])
    _, err = server.child.communicate(timeout=LONG)
    assert (server.child.returncode, err) == (1, b"Rio_readlineb error: Connection reset by peer\n")


# Processes


def children_of(pid):
    """Return the states of the children of a process, by process ID."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc")
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid:
            children[int(path.parent.name)] = state
    return children


def wait_for_children(server, wanted):
    """Wait until the server's children are in these states, one letter per child."""
    for _ in range(int(LONG / 0.02)):
        if "".join(states := children_of(server.child.pid).values()) == wanted:
            return
        with pytest.raises(subprocess.TimeoutExpired):
            server.child.wait(0.02)
    pytest.fail(f"the children's states are {states}, not {wanted}")


@pytest.mark.long
def test_processes_leave_no_zombie_when_many_end_at_once(serve):
    server = serve(PROCESSES)
    clients = [server.connect() for _ in range(8)]
    for rio in clients:
        ask(rio, b"hello\n")
    wait_for_children(server, "S" * 8)
    server.child.send_signal(signal.SIGSTOP)  # the children end before the server handles the first SIGCHLD
    for rio in clients:
        rio.close()
    wait_for_children(server, "Z" * 8)
    server.child.send_signal(signal.SIGCONT)
    wait_for_children(server, "")
    with server.connect() as rio:
        ask(rio, b"and the next\n")
    wait_for_children(server, "")
    assert server.end() == b""


@pytest.mark.long
def test_reset_by_a_client_ends_only_its_process_with_a_message(serve):
    server = serve(PROCESSES)
    with server.connect() as neighbour:
        ask(neighbour, b"hello\n")
        rio = server.connect()
        ask(rio, b"hello\n")
        reset(rio.detach()[0])
        assert server.child.complaints.readline() == b"Rio_readlineb error: Connection reset by peer\n"
        ask(neighbour, b"hello\n")
    with server.connect() as rio:
        ask(rio, b"hello\n")
    wait_for_children(server, "")
    assert server.end() == b""


@pytest.mark.long
def test_process_of_a_client_outlives_the_server_and_does_not_listen(serve):
    server = serve(PROCESSES)
    with server.connect() as rio:
        ask(rio, b"before\n")
        wait_for_children(server, "S")  # the child of the client that waited for the start has ended
        server.child.send_signal(signal.SIGINT)
        assert server.child.wait(LONG) == -signal.SIGINT
        ask(rio, b"after\n")
        with pytest.raises(ConnectionRefusedError):
            server.connect()
    assert server.child.communicate(timeout=LONG)[1] == b""  # returns when the client's process has closed the pipe


# Select


def test_select_echoes_a_line_that_arrives_byte_by_byte_between_other_clients_lines(serve):
    server = serve(SELECT)
    with server.connect() as slow, server.connect() as rio:
        for byte in b"drip\n":
            slow.writen(bytes([byte]))
            ask(rio, b"line\n")
        assert slow.readline() == b"drip\n"
    assert counted(server, 6)[1] == [5, 10, 15, 20, 25, 30]


def test_select_echoes_an_unterminated_last_line_and_reuses_the_client_s_slot(serve):
    server = serve(SELECT)
    descriptors = set()
    for _ in range(5):
        status, out, _ = run(other("socat", "127.0.0.1", server.port), b"z" * 9000)
        assert (status, out) == (0, b"z" * 9000)
        lines = [server.child.output.readline().split() for _ in range(2)]
        assert [int(words[2]) for words in lines] == [8191, 809]
        descriptors |= {words[-1] for words in lines}
    assert len(descriptors) <= 2  # the first client may have connected before the one that waited for the start closed
    assert server.end() == b""


@pytest.mark.long
def test_select_exits_with_a_message_if_a_descriptor_is_too_high(serve):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1100:
        pytest.skip("the limit of descriptors is below 1100")
    code = f"""
import os, resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (max({soft}, 1100), {hard}))
while os.dup(0) < 1019:
    pass
sys.path.insert(0, {str(EXAMPLES)!r})
runpy.run_path({str(EXAMPLES / SELECT)!r}, run_name="__main__")
"""
    server = serve(SELECT, code=code)
    served = 0
    with contextlib.ExitStack() as clients, contextlib.suppress(ConnectionError):
        while served < 10:
            rio = clients.enter_context(server.connect())
            ask(rio, b"hello\n")
            served += 1
    assert 1 < served < 5
    assert server.child.communicate(timeout=LONG)[1] == b"add_client error: Too many clients\n"
    assert server.child.returncode == 1


# Threads and prethreaded


def test_prethreaded_serves_a_fixed_number_of_clients_and_the_next_when_one_leaves(serve):
    server = serve(PRETHREADED)
    clients = [server.connect() for _ in range(NTHREADS)]
    for rio in clients:
        ask(rio, b"served\n")
    waiting = [server.connect() for _ in range(3)]
    for rio in waiting:
        rio.writen(b"waiting\n")
    for rio in clients:
        ask(rio, b"served\n")
    for rio in waiting:
        with pytest.raises(BlockingIOError):
            rio.readline(timeout=0)
    for leaving, rio in zip(clients, waiting, strict=False):
        leaving.close()
        assert rio.readline() == b"waiting\n"  # in the order of their connects
    for rio in [*clients, *waiting]:
        rio.close()
    totals = counted(server, 2 * NTHREADS + 3)[1]
    assert totals == [*range(7, 57, 7), 64, 72, 80]
    assert server.end() == b""


@pytest.mark.long
@pytest.mark.parametrize("name", [THREADS, PRETHREADED])
def test_concurrent_threads_do_not_interleave_their_output(serve, name):
    server = serve(name)
    lines = 300

    def pipeline():
        with server.connect() as rio:
            rio.writen(b"hello\n" * lines)
            assert rio.read(6 * lines) == b"hello\n" * lines

    clients = [threading.Thread(target=pipeline) for _ in range(NTHREADS)]
    for client in clients:
        client.start()
    sizes, totals = counted(server, NTHREADS * lines)
    for client in clients:
        client.join()
    assert sizes == [6] * NTHREADS * lines
    assert totals in ([], list(range(6, 6 * NTHREADS * lines + 1, 6)))


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shared_buffer_returns_each_item_once_in_order_and_never_exceeds_its_slots():
    sbuf = load("sbuf")
    sp = sbuf.sbuf_init(3)
    removed = []

    def consume():
        while (item := sbuf.sbuf_remove(sp)) is not None:
            removed.append(item)
            assert sp.rear - sp.front <= 3

    consumer = threading.Thread(target=consume)
    for item in range(3):  # fill the buffer before the consumer starts
        sbuf.sbuf_insert(sp, item)
    assert not sp.slots.acquire(blocking=False)
    consumer.start()
    for item in [*range(3, 1000), None]:
        sbuf.sbuf_insert(sp, item)
    consumer.join(LONG)
    assert not consumer.is_alive()
    assert removed == list(range(1000))
    assert not sp.items.acquire(blocking=False)

"""The costs of a server and its behaviour without memory or descriptors; the servers run in child processes."""

import contextlib

import pytest

from support.peers import Command, Server, ask, assert_waits, dial, fill, lines, peak_memory, receive

FEW_DESCRIPTORS = """if True:
    import resource, sys
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    from rioecho import EchoServer
    with EchoServer(**({"max_connections": 1000} if "asked" in sys.argv else {})):
        pass
"""


@pytest.mark.long
def test_a_program_is_warned_of_too_few_descriptors_only_for_a_limit_that_it_has_asked_for():
    with Command(None, "asked", code=FEW_DESCRIPTORS) as command:
        assert command.status() == 0
        assert command.complaint() == ("200 file descriptors are too few for max_connections (1000): raise ulimit -n")
    with Command(None, code=FEW_DESCRIPTORS) as command:
        assert command.status() == 0
        assert command.err.text == ""


HIGH_NUMBERS = """if True:
    import os
    for _ in range(1030):  # select(2) does not support descriptors above 1023
        os.dup(2)
    from rioecho.cli.server import main
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["line", "raw"])
@pytest.mark.parametrize("engine", ["thread", "event"])
def test_a_client_that_only_sends_uses_little_memory_and_others_are_served(engine, framing):
    with Server("-q", "--engine", engine, "--framing", framing) as server, contextlib.ExitStack() as stack:
        with dial(server.address) as sock:
            ask(sock)
        before = peak_memory(server.pid)
        if before is None:
            pytest.skip("there is no /proc")
        for _ in range(3):
            deaf = stack.enter_context(dial(server.address))
            fill(deaf)
            with dial(server.address) as sock:
                ask(sock)
        assert peak_memory(server.pid) - before < 3 * (2 << 20)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["thread", "event"])
def test_an_endless_line_uses_no_more_memory_than_max_line(engine):
    with Server("-q", "--engine", engine, "--max-line", 1 << 20) as server, dial(server.address) as sock:
        ask(sock)
        before = peak_memory(server.pid)
        if before is None:
            pytest.skip("there is no /proc")
        piece = b"x" * (1 << 20)
        for _ in range(50):
            ask(sock, piece)
        assert peak_memory(server.pid) - before < 8 << 20


@pytest.mark.sampled(3)
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_a_thousand_lines_in_one_write_are_echoed_with_a_small_max_line(engine):
    data = b"".join(lines(1000))
    with Server("-q", "--engine", engine, "--max-line", 50) as server, dial(server.address) as sock:
        ask(sock, data)


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("high", [False, True])
def test_without_descriptors_accepting_pauses_without_spinning_and_resumes(high):
    limit, count = (1100, 200) if high else (64, 200)
    server = Server("--host", "127.0.0.1", code=HIGH_NUMBERS if high else None, prelude=f"ulimit -n {limit}")
    with server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(count)]
        for i, sock in enumerate(clients):
            sock.sendall(b"%d\n" % i)
        server.err.wait_for("accepting pauses")
        assert_waits(server.pid, clients[-1:])
        ask(clients[0], receive(clients[0], 2) + b"who is in stays in\n")
        for i, sock in enumerate(clients):
            if i:
                expected = b"%d\n" % i
                assert receive(sock, len(expected)) == expected
            sock.close()
        with dial(server.address) as sock:
            ask(sock)
        assert server.err.text.count("accepting pauses") < count / 2
        assert "Traceback" not in server.err.text

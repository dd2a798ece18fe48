"""The pytest plugin: its fixtures, how a test fails, and what it costs a run that does not use it."""

import os
import subprocess
import sys
import tempfile
import threading
from importlib.metadata import entry_points

import pytest

from rioecho.testing import Peer, Proxy, expect  # noqa: F401 - else each run of pytester loads its own

pytest_plugins = ["pytester"]

ALL = """
    import rioecho, socket
    from rioecho.testing import *

    def ask(address, data=b"hello\\n"):
        with rioecho.connect(address, timeout=10) as rio:
            rio.writen(data)
            return rio.readline()
"""


@pytest.fixture
def outcome(pytester):
    """Return a function that runs tests with the plugin and returns the result."""

    def run(code, *arguments):
        pytester.makepyfile(ALL + code)
        return pytester.runpytest("-p", "rioecho.testing", "-p", "no:cacheprovider", *arguments)

    return run


def test_the_entry_point_is_the_module():
    found = [each.value for each in entry_points(group="pytest11") if each.value.startswith("rioecho")]
    assert found == ["rioecho.testing"]


def test_importing_the_module_loads_nothing_heavy():
    code = "import sys, rioecho; before = set(sys.modules); import rioecho.testing; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rioecho.testing"]


@pytest.mark.slow
def test_a_run_that_uses_no_fixture_loads_nothing_heavy(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_what_is_loaded():
            loaded = {name for name in sys.modules if name.startswith(("rioecho.testing", "rioecho._server"))}
            assert loaded == {"rioecho.testing", "rioecho.testing._fixtures"}
            assert not {"rioecho.server", "ssl", "asyncio"} & set(sys.modules)
        """
    )
    plain = ("-p", "no:xdist", "-p", "no:asyncio", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess("-p", "rioecho.testing", *plain).assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_program_may_import_the_package_before_pytest(pytester):
    pytester.makepyfile("def test_the_fixtures_are_there(peer, proxy): pass")
    options = ["-p", "rioecho.testing", "-W", "error", "-p", "no:asyncio"]
    code = f"import rioecho, pytest; raise SystemExit(pytest.main({options}))"
    assert pytester.run(sys.executable, "-P", "-c", code).ret == 0


@pytest.mark.slow
def test_the_echo_servers_have_addresses(outcome):
    outcome(
        """
    def test_tcp(echo_server):
        assert isinstance(echo_server, rioecho.EchoServer)
        assert echo_server.address == (echo_server.host, echo_server.port)
        assert ask(echo_server.address) == b"hello\\n"

    def test_unix(echo_server_unix):
        assert isinstance(echo_server_unix.address, str)
        assert not hasattr(echo_server_unix, "port")
        assert ask(echo_server_unix.address) == b"hello\\n"
    """
    ).assert_outcomes(passed=2)


def test_a_peer_and_a_proxy_in_front_of_it(outcome):
    outcome(
        """
    def test_both(peer, proxy):
        server = peer(expect(b"hello\\n"), drip(b"hi\\n"))
        assert ask(proxy(server, cut=2).address) == b"hi\\n"
        assert server.received == b"hello\\n"
    """
    ).assert_outcomes(passed=1)


@pytest.mark.slow
def test_an_unmet_expectation_fails_a_test_that_would_pass(outcome):
    result = outcome(
        """
    def test_it(peer):
        assert ask(peer(expect(b"HELLO\\n")).address) == b""
    """
    )
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["peer, client 1, step 1: expected b'HELLO\\n', got b'hello\\n'"])


@pytest.mark.slow
def test_a_test_that_empties_the_errors_passes(outcome):
    outcome(
        """
    def test_it(peer):
        server = peer(expect(b"HELLO\\n"))
        ask(server.address)
        assert "got b'hello" in str(server.errors[0])
        server.errors.clear()
    """
    ).assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_failing_test_shows_the_seed_of_its_proxy_and_a_passing_one_does_not(outcome):
    code = """
    import pytest

    @pytest.mark.parametrize("fails", [True, False])
    def test_it(proxy, echo_server, fails):
        proxy(echo_server, seed=4711 + fails, corrupt=0.5)
        assert not fails
    """
    result = outcome(code)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Captured rioecho proxy*", "Proxy(*seed=4712, corrupt=0.5)"])
    result.stdout.no_fnmatch_line("Proxy(*seed=4711*")


@pytest.mark.slow
def test_a_peer_serves_the_fixtures_that_use_it_until_their_end(outcome):
    outcome(
        """
    import pytest

    @pytest.fixture
    def client(peer):
        with rioecho.connect(peer(send(b"220\\n"), expect(b"QUIT\\n")).address) as rio:
            yield rio
            rio.writen(b"QUIT\\n")

    def test_it(client):
        assert client.readline() == b"220\\n"
    """
    ).assert_outcomes(passed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "counts"),
    [("assert False", {"failed": 2}), ("raise KeyboardInterrupt", None), ("pytest.skip()", {"skipped": 2})],
)
def test_nothing_is_left_of_a_test_however_it_ends(outcome, monkeypatch, end, counts):
    code = f"""
    import contextlib, pytest

    def test_fixtures(peer, proxy, echo_server, echo_server_unix):
        server = peer(send(b"hello"), stall(600), unix=True)
        with contextlib.ExitStack() as clients:
            for each in (echo_server, echo_server_unix, server):
                client = clients.enter_context(rioecho.connect(proxy(each).address))
            assert client.readexactly(5) == b"hello"
            {end}

    def test_blocks():
        with (
            Peer(stall(600), unix=True) as server,
            Proxy(server, delay=600) as between,
            rioecho.connect(between.address) as client,
        ):
            client.writen(b"hello")
            {end}
    """
    folder = tempfile.mkdtemp()
    monkeypatch.setattr(tempfile, "tempdir", folder)
    threads = threading.active_count()
    if counts is None:
        with pytest.raises(KeyboardInterrupt):
            outcome(code)
    else:
        outcome(code).assert_outcomes(**counts)
    assert threading.active_count() == threads
    assert os.listdir(folder) == []
    os.rmdir(folder)


def test_peers_and_proxies_need_no_pytest(child):
    child("""if True:
        import sys
        sys.modules["pytest"] = None
        import rioecho
        from rioecho.testing import Peer, Proxy, echo
        with Peer(echo()) as peer, Proxy(peer, cut=2) as proxy, rioecho.connect(proxy.address) as rio:
            rio.writen(b"hello")
            assert rio.readexactly(5) == b"hello"
    """)


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "arguments"), [("xdist", ("-n", "2")), ("pytest_asyncio", ())])
def test_other_plugins_do_not_mind(pytester, plugin, arguments):
    pytest.importorskip(plugin)
    mark = "@pytest.mark.asyncio" if plugin == "pytest_asyncio" else ""
    a = "async " if mark else ""
    pytester.makepyfile(
        ALL
        + f"""
    import pytest

    {mark}
    @pytest.mark.parametrize("n", range(4))
    {a}def test_it(peer, proxy, echo_server, n):
        assert ask(proxy(peer(expect(b"hello\\n"), send(b"hi\\n"))).address) == b"hi\\n"
        assert ask(echo_server.address) == b"hello\\n"
        {"async with Peer(): pass" if mark else ""}
        assert n != 3
    """
    )
    result = pytester.runpytest_subprocess("-p", "rioecho.testing", "-p", "no:cacheprovider", *arguments)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["Proxy(*seed=0)"])

"""A Rio over the sockets of gevent and eventlet, which let other greenlets run while a call waits."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import environment

PROGRAMS = Path(__file__).parents[1] / "support" / "green_programs.py"


@pytest.fixture(params=["gevent", "eventlet"])
def green(request):
    """Return a function that runs a program of green_programs.py: the libraries patch what the tests use."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")

    def run(program, *arguments):
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", str(PROGRAMS), request.param, program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=100,
            env=environment(),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout == "done\n"

    return run


@pytest.mark.slow
def test_a_call_that_waits_lets_other_greenlets_run_and_ends_in_time(green):
    green("wait")


@pytest.mark.slow
def test_100000_lines_with_timeouts_and_thrown_exceptions_in_their_middle_arrive_whole(green):
    green("lines")


@pytest.mark.slow
def test_a_reader_and_a_writer_greenlet_share_a_rio_and_a_second_reader_is_refused(green):
    green("both")


@pytest.mark.slow
def test_a_read_sends_unsent_output_and_output_that_is_stuck_keeps_no_line_from_it(green):
    green("tied")


@pytest.mark.slow
def test_the_drop_in_works_in_a_process_whose_socket_module_is_replaced(green):
    green("patched")


@pytest.mark.long
def test_no_sigpipe_reaches_the_process_while_several_greenlets_send(green):
    green("sigpipe")


@pytest.mark.slow
def test_tls_sockets_of_the_library_let_other_greenlets_run(green, certificate):
    green("tls", certificate)

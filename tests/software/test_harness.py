"""The comparison of run.py finds what differs, and nothing else. The suites here are small and need no registry."""

import os
import site
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from software import command, packages
from software.catalogue import CATALOGUE, Software
from software.environments import Environment
from software.suites import Comparison, Outcomes, Runner, compare

FOLDER = Path(__file__).parent

USES_MAKEFILE = """
import os, pathlib, socket, subprocess, sys
import pytest

def kind():
    a, b = socket.socketpair()
    with a, b, a.makefile("rb") as file:
        return type(file).__module__.partition(".")[0]

def test_same():
    assert kind()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return an environment that has the packages of the running one."""
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    (made.packages / "packages.pth").write_text(f"import site; list(map(site.addsitedir, {sorted(folders)}))\n")
    return made


@pytest.fixture
def compared(environment, tmp_path):
    """Return a function that compares the two runs of a suite, given as the text of a test module."""

    def run_both(tests, **options):
        (tmp_path / "suite").mkdir()
        (tmp_path / "suite" / "test_it.py").write_text(USES_MAKEFILE + tests)
        logs = tmp_path / "logs"
        logs.mkdir()
        # The plugins of this environment take long to import. A sanitizer's settings must reach the child.
        variables = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return compare(Runner(environment.python, tmp_path / "suite", ["test_it.py"], logs, 60, variables), **options)

    return run_both


@pytest.mark.long
def test_a_test_that_passes_with_the_stock_files_alone_is_broken(compared):
    result = compared(
        """
def test_is_stock():
    assert kind() == "_io"

def test_is_ours():
    assert kind() == "rioecho"

def test_child_is_stock():
    code = "import socket; print(socket.socket.makefile.__module__)"
    assert subprocess.check_output([sys.executable, "-c", code], env={}) == b"socket\\n"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"socket\\n"

def test_fails_on_both():
    assert not kind()
"""
    )
    assert result.broken == ["test_it.py::test_child_is_stock", "test_it.py::test_is_stock"]
    assert result.mended == ["test_it.py::test_is_ours"]
    assert result.failing == ["test_it.py::test_fails_on_both"]
    assert not result.unsteady
    assert not result.nothing_shown
    assert str(result.stock) == "3 passed, 2 failed"
    assert result.stock.files == 4
    assert result.cpu_ratio > 0
    result.accept({"test_is_stock"})
    assert result.wanted == ["test_it.py::test_is_stock"]
    assert result.broken == ["test_it.py::test_child_is_stock"]


@pytest.mark.slow
def test_a_test_that_differs_only_once_is_unsteady(compared, tmp_path):
    result = compared(
        f"""
def test_first_time_of_ours():
    if kind() == "rioecho":
        pathlib.Path({str(tmp_path / "mark")!r}).touch(exist_ok=False)

def test_second_time_of_ours():
    mark = pathlib.Path({str(tmp_path / "other mark")!r})
    if kind() == "rioecho" and not mark.exists():
        mark.touch()
        raise OSError
"""
    )
    assert result.unsteady == ["test_it.py::test_second_time_of_ours"]
    assert not result.broken


@pytest.mark.slow
def test_a_test_known_to_be_unsteady_runs_until_it_passes_and_is_broken_if_it_never_does(compared, tmp_path):
    result = compared(
        f"""
def test_fourth_time_of_ours():
    marks = pathlib.Path({str(tmp_path / "marks")!r})
    if kind() == "rioecho":
        with marks.open("a") as file:
            file.write("x")
            assert file.tell() >= 4

def test_never_with_ours():
    assert kind() == "_io"
""",
        unsteady={"test_fourth_time_of_ours", "test_never_with_ours"},
    )
    assert result.unsteady == ["test_it.py::test_fourth_time_of_ours"]
    assert result.broken == ["test_it.py::test_never_with_ours"]


@pytest.mark.slow
def test_a_test_that_its_suite_runs_again_has_the_outcome_of_the_last_run(compared):
    result = compared(
        """
def test_runs_again(request):  # as pytest-rerunfailures reports it
    test = request.node
    report = pytest.TestReport(test.nodeid, test.location, {}, outcome="rerun", longrepr=None, when="call")
    request.config.hook.pytest_runtest_logreport(report=report)
"""
    )
    assert result.stock.tests == {"test_it.py::test_same": "passed", "test_it.py::test_runs_again": "passed"}


@pytest.mark.slow
def test_a_process_that_dies_breaks_the_test_that_ran_and_those_after_it(compared):
    result = compared(
        """
def test_dies():
    if kind() == "rioecho":
        os.abort()

def test_after():
    pass
"""
    )
    assert result.broken == ["the run ends with status -6", "test_it.py::test_after", "test_it.py::test_dies"]
    assert result.swapped.tests == {"test_it.py::test_same": "passed", "test_it.py::test_dies": "died"}


@pytest.mark.slow
def test_a_run_that_replaces_makefile_shows_nothing(compared):
    result = compared(
        """
def test_replaces():
    socket.socket.makefile = lambda *arguments: None
"""
    )
    assert "the run ends with status 99" in result.broken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("del test_same\ndef test_nothing(): pass", "no test uses what is swapped"),
        ("raise OSError", "no test passes with the standard library's files"),
        ("os._exit(7)", "the run with the standard library's files ends with status 7"),
    ],
)
def test_a_comparison_that_shows_nothing_says_so(compared, tests, reason):
    assert compared(tests).nothing_shown == reason


def run(*arguments):
    done = subprocess.run([sys.executable, FOLDER / "run.py", *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_list_has_the_software_and_an_unknown_name_is_refused():
    status, out, _ = run("--list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [software.name for software in CATALOGUE]
    assert run("urllib4")[0] == 2


def test_software_whose_server_is_missing_is_skipped_with_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(packages.PROGRAMS, "MariaDB", ["mariadbd-that-no-one-has"])
    with pytest.raises(command.Skipped, match="mariadbd-that-no-one-has not installed"):
        command.run_one(Software("driver", "1.0", services=("MariaDB",)), tmp_path / "driver", tmp_path / "wheel")


@pytest.mark.slow
def test_software_is_skipped_with_its_name_if_the_registry_cannot_be_reached(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # refuses connections from now on
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    for name, value in {"CONFIG_FILE": os.devnull, "FIND_LINKS": "", "RETRIES": "0", "NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    done = run("docker", "--wheel", str(tmp_path / "wheel"))
    assert done[0] == 0
    assert "docker           skipped: the registry cannot be reached" in done[1]


def test_a_run_that_ends_inside_a_test_shows_nothing():
    tests = {"test_it.py::test_same": "passed", "test_it.py::test_hangs": "died"}
    run = Outcomes(tests, status=1, cpu=1.0, seconds=1.0, files=1)  # the status is that of faulthandler's exit
    assert Comparison(run, run).nothing_shown == "the run with the standard library's files ends in test_hangs"


def test_a_known_difference_is_printed_with_its_reason():
    run = Outcomes({"test_it.py::A::test_repr": "passed"}, status=0, cpu=1.0, seconds=1.0, files=1)
    result = Comparison(run, run, broken=["test_it.py::A::test_repr", "test_it.py::A::test_other"])
    result.unsteady.append("test_it.py::test_slow")
    software = Software(
        "driver", "1.0", wanted={"test_repr": "it is of another class"}, unsteady={"test_slow": "its server is slow"}
    )
    result.accept(software.wanted)
    assert command.explained(software, result) == [
        "broken: test_it.py::A::test_other",
        "wanted: test_it.py::A::test_repr: it is of another class",
        "unsteady: test_it.py::test_slow: its server is slow",
    ]


def test_what_fails_with_both_is_printed_once_with_its_reason():
    tests = {
        "test_it.py::test_log[a]": "failed",
        "test_it.py::test_log[b::c]": "failed",
        "test_it.py::test_x": "failed",
    }
    run = Outcomes(tests, status=1, cpu=1.0, seconds=1.0, files=1)
    software = Software("driver", "1.0", failing={"test_log": "its server is old"})
    assert command.explained(software, Comparison(run, run))[:2] == [
        "fails with both: test_log: its server is old",
        "fails with both: test_x: the reason is not known",
    ]


def test_every_quick_run_does_without_a_server():
    assert [software.name for software in CATALOGUE if software.quick and software.services] == []
    assert [software for software in CATALOGUE if software.quick]

"""The unix socket of a server: which server gets the path, when the file is removed, and the error messages."""

import contextlib
import errno
import functools
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rioecho._server import listeners
from rioecho._server.folderlock import FolderLock
from rioecho._server.listeners import UnixListener
from support.peers import SECONDS
from support.unix_sockets import answers, bound, needs_abstract_names, stale

LINUX = sys.platform.startswith("linux")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


@pytest.fixture
def unix():
    """Return a function that creates a UnixListener; those left open are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(path, **options):
            return stack.enter_context(contextlib.closing(UnixListener(path, **options)))

        yield make


def refused(path, error=OSError):
    """Return errno and message of the error of listening on the path; check that the directory is unchanged."""
    folder = os.path.dirname(os.fsdecode(path))
    before = os.path.isdir(folder) and sorted(os.listdir(folder))
    with pytest.raises(error) as caught:
        UnixListener(path)
    assert (os.path.isdir(folder) and sorted(os.listdir(folder))) == before
    return caught.value.errno, caught.value.strerror


@pytest.mark.parametrize("form", [str, os.fsencode, Path], ids=["str", "bytes", "Path"])
def test_a_unix_listener_accepts_connections_and_removes_its_file(path, unix, form):
    listener = unix(form(path))
    assert listener.path == path
    assert listener.sock.gettimeout() is None
    assert not listener.sock.get_inheritable()
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    assert answers(path, listener.sock)
    listener.close()
    assert not os.path.lexists(path)
    assert listener.sock.fileno() == -1
    listener.close()


def test_the_backlog_is_passed_to_the_kernel(path, unix):
    unix(path, backlog=0)
    with contextlib.ExitStack() as stack, pytest.raises(BlockingIOError if LINUX else OSError):
        for _ in range(10):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect(path)


def test_a_stale_socket_is_replaced(path, unix):
    stale(path)
    assert answers(path, unix(path).sock)
    assert os.listdir(os.path.dirname(path)) == ["socket"]


@pytest.mark.long
def test_the_socket_of_a_server_killed_just_now_is_replaced(path, unix):
    code = (
        "import os, sys; from rioecho._server.listeners import UnixListener; UnixListener(sys.argv[1]); os.kill(0, 9)"
    )
    code = code.replace("os.kill(0", "os.kill(os.getpid()")
    done = subprocess.run([sys.executable, "-c", code, path], check=False, timeout=SECONDS)
    assert done.returncode == -signal.SIGKILL
    assert answers(path, unix(path).sock)


def test_a_server_that_is_about_to_listen_keeps_its_path(path, monkeypatch):
    waits = []

    def listen_meanwhile(seconds):
        waits.append(seconds)
        sock.listen()

    monkeypatch.setattr(listeners, "GRACE", SECONDS)
    monkeypatch.setattr(listeners, "sleep", listen_meanwhile)
    with bound(path) as sock:
        assert refused(path) == (
            errno.EADDRINUSE,
            f"cannot listen on {path}: another server is listening there",
        )
    assert waits == [SECONDS]


def test_a_server_that_takes_the_path_during_the_check_keeps_it(path, unix, monkeypatch):
    stale(path)
    look, others = listeners._is_listened_on, []

    def look_and_be_late(path):
        found = look(path)
        if not others:
            os.unlink(path)
            others.append(unix(path))
        return found

    monkeypatch.setattr(listeners, "_is_listened_on", look_and_be_late)
    monkeypatch.setattr(listeners, "LOCK_PATIENCE", 0)  # the other server takes no lock
    assert refused(path) == (errno.EADDRINUSE, f"cannot listen on {path}: another server is listening there")
    others[0].sock.accept()[0].close()  # the probe
    assert answers(path, others[0].sock)


def test_a_lock_that_is_never_released_does_not_prevent_listening(path, unix, monkeypatch):
    monkeypatch.setattr(listeners, "LOCK_PATIENCE", 0.05)
    stale(path)
    with FolderLock(os.path.dirname(path)) as lock:
        assert lock.take()
        assert answers(path, unix(path).sock)


def test_a_released_lock_cannot_be_taken(path):
    with FolderLock(os.path.dirname(path)) as lock:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        lock.take()


def test_the_path_is_not_touched_while_another_server_holds_the_lock(path, unix, monkeypatch):
    there = []

    def release(_):
        there.append(os.path.lexists(path))
        lock.__exit__()

    monkeypatch.setattr(listeners, "sleep", release)
    with FolderLock(os.path.dirname(path)) as lock:
        assert lock.take()
        assert answers(path, unix(path).sock)
    assert there == [False]


def test_a_path_in_use_is_an_error_and_stays(path, unix):
    first = unix(path)
    assert refused(path) == (errno.EADDRINUSE, f"cannot listen on {path}: another server is listening there")
    first.sock.accept()[0].close()  # the probe
    assert answers(path, first.sock)


@pytest.mark.skipif(not LINUX, reason="a full listen queue looks like a stale socket")
def test_a_full_listen_queue_of_another_server_does_not_block(path, unix):
    first = unix(path, backlog=0)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        began = time.monotonic()
        assert refused(path) == (errno.EADDRINUSE, f"cannot listen on {path}: another server is listening there")
        assert time.monotonic() - began < SECONDS / 2
    first.sock.accept()[0].close()
    assert answers(path, first.sock)


@pytest.mark.skipif(not LINUX, reason="the errno differs")
def test_a_socket_of_another_type_in_use_is_an_error(path):
    with bound(path, socket.SOCK_DGRAM):
        assert refused(path) == (errno.EADDRINUSE, f"cannot listen on {path}: another server is listening there")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: Path(path).write_text("precious"), "a regular file"),
        (os.mkdir, "a directory"),
        (os.mkfifo, "a pipe"),
        (lambda path: os.symlink("/dev/null", path), "a symbolic link"),
        (lambda path: os.symlink("nowhere", path), "a symbolic link"),
    ],
    ids=["file", "folder", "pipe", "link", "dangling"],
)
def test_a_file_that_is_not_a_socket_is_an_error_and_stays(path, make, kind):
    make(path)
    before = os.lstat(path)
    assert refused(path) == (
        errno.EEXIST,
        f"cannot listen on {path}: it is {kind}, not a socket",
    )
    assert os.path.samestat(os.lstat(path), before)


def test_a_device_is_an_error():
    assert refused("/dev/null") == (
        errno.EEXIST,
        "cannot listen on /dev/null: it is a device, not a socket",
    )


def test_a_link_to_a_stale_socket_is_an_error_and_both_stay(path, tmp_path):
    stale(path)
    os.symlink("socket", tmp_path / "link")
    assert refused(tmp_path / "link")[1].endswith("link: it is a symbolic link, not a socket")


def test_a_missing_directory_is_an_error_that_names_the_path(tmp_path):
    path = str(tmp_path / "missing" / "socket")
    assert refused(path, FileNotFoundError) == (errno.ENOENT, f"cannot listen on {path}: No such file or directory")


def test_a_file_in_place_of_a_directory_is_an_error_that_names_the_path(tmp_path):
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "socket")
    assert refused(path, NotADirectoryError) == (errno.ENOTDIR, f"cannot listen on {path}: Not a directory")


def test_a_path_too_long_is_an_error_that_names_it(tmp_path):
    path = str(tmp_path / ("x" * 120))
    assert refused(path) == (errno.ENAMETOOLONG, f"cannot listen on {path}: AF_UNIX path too long")


def test_a_path_that_does_not_fit_in_a_line_is_quoted(tmp_path):
    path = str(tmp_path / "missing" / "two\nlines")
    assert refused(path)[1] == f"cannot listen on {path!r}: No such file or directory"


@pytest.mark.parametrize("path", ["", b""], ids=["str", "bytes"])
def test_an_empty_path_is_an_error(path):
    with pytest.raises(ValueError, match=r"^the path of a unix socket is empty$"):
        UnixListener(path)


@pytest.mark.parametrize("path", ["some\0where", b"some\0where", "\0some\0where"], ids=["str", "bytes", "abstract"])
def test_a_nul_inside_the_path_is_an_error(path):
    with pytest.raises(ValueError, match=r"^the path of a unix socket contains a NUL: "):
        UnixListener(path)


def test_a_path_is_str_bytes_or_path_like():
    with pytest.raises(TypeError, match="int"):
        UnixListener(5)


@pytest.fixture
def nobody():
    """Return a context manager, ``nobody(folder)``, that drops the privileges of root."""

    @contextlib.contextmanager
    def become(folder):
        if os.geteuid() != 0:
            yield
            return
        try:
            os.seteuid(65534)
            os.listdir(folder)
        except OSError:
            os.seteuid(0)
            pytest.skip("root cannot become nobody")
        try:
            yield
        finally:
            os.seteuid(0)

    return become


@pytest.fixture
def open_folder():
    """A directory that every user can search, unlike tmp_path, but not write to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103
        yield folder
        os.chmod(folder, 0o755)  # noqa: S103


def test_a_directory_without_write_permission_is_an_error_that_names_the_path(open_folder, nobody):
    path = open_folder + "/socket"
    os.chmod(open_folder, 0o555)  # noqa: S103
    with nobody(open_folder):
        assert refused(path, PermissionError) == (errno.EACCES, f"cannot listen on {path}: Permission denied")


def test_a_socket_without_permission_to_connect_is_an_error_and_stays(open_folder, nobody):
    path = open_folder + "/socket"
    stale(path)
    os.chmod(path, 0)
    with nobody(open_folder):
        assert refused(path, PermissionError) == (errno.EACCES, f"cannot listen on {path}: Permission denied")


def test_a_stale_socket_without_permission_to_remove_it_is_an_error_that_says_so(open_folder, nobody):
    path = open_folder + "/socket"
    stale(path)
    os.chmod(path, 0o777)  # noqa: S103
    os.chmod(open_folder, 0o555)  # noqa: S103
    with nobody(open_folder):
        assert refused(path, PermissionError) == (
            errno.EACCES,
            f"cannot listen on {path}: cannot remove the stale socket file: Permission denied",
        )


@pytest.mark.parametrize("backlog", [1 << 40, "8"])
def test_an_invalid_backlog_leaves_no_file(path, backlog):
    with pytest.raises((OverflowError, TypeError)):
        UnixListener(path, backlog=backlog)
    assert not os.path.lexists(path)


def test_a_file_that_took_the_place_of_the_socket_stays(path, unix):
    listener = unix(path)
    os.unlink(path)
    Path(path).write_text("precious")
    listener.close()
    assert Path(path).read_text() == "precious"


def test_the_socket_of_another_server_that_took_the_place_stays(path, unix):
    first = unix(path)
    os.unlink(path)
    second = unix(path)
    first.close()
    assert answers(path, second.sock)


def test_a_socket_that_was_removed_can_be_closed(path, unix):
    listener = unix(path)
    os.unlink(path)
    listener.close()


def test_closing_again_leaves_the_socket_of_the_next_server(path, unix):
    first = unix(path)
    first.close()
    second = unix(path)  # it may reuse the inode number of the first one
    first.close()
    assert answers(path, second.sock)


def test_the_file_is_removed_after_a_change_of_permissions_and_working_directory(tmp_path, monkeypatch, unix):
    monkeypatch.chdir(tmp_path)
    listener = unix("socket")
    assert listener.path == "socket"
    os.chmod("socket", 0o600)
    monkeypatch.chdir("/")
    listener.close()
    assert os.listdir(tmp_path) == []


@needs_abstract_names
def test_an_abstract_name_has_no_file(tmp_path, monkeypatch, unix):
    monkeypatch.chdir(tmp_path)
    name = f"\0rioecho test {os.getpid()}"
    listener = unix(name)
    assert listener.path == name
    assert answers(name, listener.sock)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)) as caught:
        UnixListener(name)
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.strerror == f"cannot listen on @{name[1:]}: {os.strerror(errno.EADDRINUSE)}"
    assert os.listdir(tmp_path) == []
    listener.close()
    assert answers(name, unix(name).sock)


def test_an_abstract_name_is_an_error_outside_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match=r"^a unix socket has an abstract name on Linux only: "):
        UnixListener("\0name")


# A socket not yet returned when the handler raises is closed by the interpreter, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_leaves_no_file(path, storm):
    call = functools.partial(UnixListener, path)  # not a Python function, in which the handler could run too
    storm(random.Random(5), 0.0001)
    interrupted = 0
    for _ in range(300):
        stale(path)
        listener, error = storm.attempt(call)
        if error:
            interrupted += 1
            assert os.listdir(os.path.dirname(path)) in ([], ["socket"])
            if os.path.lexists(path):
                assert os.lstat(path).st_mtime == 1  # of another socket
                os.unlink(path)
        else:
            listener.close()
            assert os.listdir(os.path.dirname(path)) == []
    assert interrupted > 10


RACE = """\
import os, socket, sys, time
from rioecho._server.listeners import UnixListener
path = sys.argv[1]
begin = time.monotonic() + 0.02
reports, report = os.pipe()
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        try:
            while time.monotonic() < begin:
                pass
            listener = UnixListener(path)
            os.write(report, b"1")
            while listener.sock.accept()[0].recv(4) != b"stop":  # the probes of other servers
                pass
            listener.close()
        except OSError as error:
            os.write(report, b"0" if "another server is listening there" in str(error) else b"?")
        finally:
            os._exit(0)
    pids.append(pid)
print(*sorted(os.read(reports, 1) for _ in pids))
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    client.sendall(b"stop")
    for pid in pids:
        os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_one_of_many_servers_that_find_a_stale_socket_gets_it(path, child):
    for _ in range(5):
        stale(path)
        assert child(RACE, path, timeout=SECONDS) == "b'0' b'0' b'0' b'1'\n"
        assert os.listdir(os.path.dirname(path)) == []

"""The wrappers for files, directories, select, processes, signals, threads and semaphores."""

import contextlib
import gc
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import weakref

import pytest

from rioecho import csapp
from rioecho.csapp import (
    AF_INET,
    DEF_MODE,
    FD_CLR,
    FD_ISSET,
    FD_SET,
    FD_SETSIZE,
    FD_ZERO,
    INADDR_LOOPBACK,
    O_CREAT,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    SEEK_END,
    SEEK_SET,
    SIG_DFL,
    SIG_IGN,
    SIGUSR1,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    WEXITSTATUS,
    WIFEXITED,
    WIFSIGNALED,
    WNOHANG,
    WTERMSIG,
    Close,
    Closedir,
    Dup2,
    Execve,
    Fork,
    Fputs,
    Fstat,
    Kill,
    Lseek,
    Mmap,
    Munmap,
    Open,
    Opendir,
    P,
    Pthread_create,
    Pthread_detach,
    Pthread_exit,
    Pthread_join,
    Pthread_once,
    Pthread_self,
    Read,
    Readdir,
    Select,
    Sem_init,
    Setsockopt,
    Signal,
    Socket,
    Stat,
    V,
    Wait,
    Waitpid,
    Write,
    fd_set,
    htonl,
    inet_ntop,
    inet_pton,
)

LONG = 20.0  # timeout in seconds; expires only if something is broken


@pytest.fixture
def path(tmp_path):
    """Return the path of a file with three lines."""
    path = tmp_path / "file.txt"
    path.write_bytes(b"one\ntwo\nthree\n")
    return str(path)


# Constants


def test_constants_of_the_headers_are_those_of_the_system():
    for name in csapp.__all__:
        for module, start in ((os, "O_"), (os, "SEEK_"), (socket, "SO_"), (signal, "SIG"), (stat, "S_I")):
            if name.startswith(start) and name != "SOCK_STREAM":
                assert getattr(csapp, name) is getattr(module, name), name
    assert (csapp.STDIN_FILENO, csapp.STDOUT_FILENO, csapp.STDERR_FILENO) == (0, 1, 2)
    assert csapp.MAXBUF == 8192
    assert DEF_MODE == 0o666
    assert csapp.DEF_UMASK == 0o022
    assert csapp.environ is os.environ


def test_addresses_are_converted_as_in_the_book():
    assert inet_ntop(AF_INET, htonl(0x8002C2F2).to_bytes(4, sys.byteorder)) == "128.2.194.242"
    assert int.from_bytes(inet_pton(AF_INET, "127.0.0.1"), "big") == INADDR_LOOPBACK


# Files


def test_files_are_opened_read_and_written(path):
    fd = Open(path, O_RDWR)
    buf = bytearray(10)
    assert Read(fd, 4) == b"one\n"
    assert Read(fd, buf, 4) == 4
    assert buf[:4] == b"two\n"
    assert Lseek(fd, 0, SEEK_END) == 14
    assert Write(fd, b"four\n") == 5
    assert Write(fd, bytearray(b"five\nand more"), 5) == 5
    assert Lseek(fd, 8, SEEK_SET) == 8
    assert Read(fd, buf, 10) == 10
    assert buf == b"three\nfour"
    assert Read(fd, n=100) == b"\nfive\n"
    assert Read(fd, 1) == b""
    assert Read(fd, buf, 1) == 0
    assert Fstat(fd).st_size == Stat(path).st_size == 24
    assert csapp.S_ISREG(Stat(path).st_mode)
    assert not os.get_inheritable(fd)
    Close(fd)


def test_a_new_file_has_the_permissions_asked_for(tmp_path):
    before = os.umask(csapp.DEF_UMASK)
    try:
        fds = [
            Open(str(tmp_path / "default"), O_CREAT | O_TRUNC | O_WRONLY),
            Open(str(tmp_path / "book's"), O_CREAT | O_TRUNC | O_WRONLY, DEF_MODE),
            Open(str(tmp_path / "private"), O_CREAT | O_TRUNC | O_WRONLY, csapp.S_IRUSR),
        ]
    finally:
        os.umask(before)
    assert [Fstat(fd).st_mode & 0o777 for fd in fds] == [0o644, 0o644, 0o400]
    for fd in fds:
        Close(fd)


def test_dup2_makes_both_descriptors_share_one_position(path):
    fd1 = Open(path, O_RDONLY, 0)
    fd2 = Open(path, O_RDONLY, 0)
    Read(fd2, 1)
    assert Dup2(fd2, fd1) == fd1
    assert Read(fd1, 1) == b"n"
    Close(fd1)
    Close(fd2)


@pytest.mark.parametrize("n", [-1, 11])
def test_a_read_or_write_of_a_wrong_size_is_a_value_error_and_moves_nothing(path, n):
    fd = Open(path, O_RDWR)
    with pytest.raises(ValueError, match=str(n)):
        Read(fd, bytearray(10), n)
    with pytest.raises(ValueError, match=str(n)):
        Write(fd, bytearray(10), n)
    assert Lseek(fd, 0, os.SEEK_CUR) == 0
    Close(fd)


def test_a_file_is_mapped_and_written_from_memory(path):
    fd = Open(path, O_RDONLY, 0)
    filesize = Fstat(fd).st_size
    srcp = Mmap(filesize, csapp.PROT_READ, csapp.MAP_PRIVATE, fd, 0)
    Close(fd)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert csapp.Rio_writen(ours.fileno(), srcp, filesize) == 14
        assert theirs.recv(100) == b"one\ntwo\nthree\n"
    Munmap(srcp)


@pytest.mark.parametrize(("length", "offset"), [(0, 0), (1 << 20, 0), (1, 1 << 20)])
def test_a_mapping_that_is_empty_or_past_the_end_is_a_failure(path, length, offset, capsys):
    fd = Open(path, O_RDONLY, 0)
    with pytest.raises(SystemExit):
        Mmap(length, csapp.PROT_READ, csapp.MAP_PRIVATE, fd, offset)
    assert capsys.readouterr().err.startswith("Mmap error: ")
    Close(fd)


def test_a_directory_is_read_with_the_two_entries_that_every_directory_has(path, tmp_path):
    dirp = Opendir(str(tmp_path))
    found = {}
    while (entry := Readdir(dirp)) is not None:
        found[entry.d_name] = entry.d_ino
    assert Readdir(dirp) is None
    Closedir(dirp)
    assert found == {
        ".": Stat(tmp_path).st_ino,
        "..": Stat(tmp_path.parent).st_ino,
        "file.txt": Stat(path).st_ino,
    }


def test_setsockopt_sets_an_option_of_a_socket():
    fd = Socket(AF_INET, SOCK_STREAM)
    assert Setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1) is None
    with socket.socket(fileno=os.dup(fd)) as sock:
        assert sock.getsockopt(SOL_SOCKET, SO_REUSEADDR) != 0
    Close(fd)


# Select


@pytest.fixture
def pipes():
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(2):
            ends.append(os.pipe())
            for fd in ends[-1]:
                stack.callback(os.close, fd)
        yield ends


def test_select_leaves_the_ready_descriptors_in_the_sets_and_returns_their_number(pipes):
    (r1, w1), (r2, _) = pipes
    read_set = fd_set()
    FD_ZERO(read_set)
    FD_SET(r1, read_set)
    FD_SET(r2, read_set)
    os.write(w1, b"x")
    ready_set = read_set.copy()
    assert Select(max(r1, r2) + 1, ready_set, None, None) == 1
    assert FD_ISSET(r1, ready_set)
    assert not FD_ISSET(r2, ready_set)
    assert FD_ISSET(r2, read_set)
    FD_CLR(r1, read_set)
    assert Select(max(r1, r2) + 1, read_set, None, None, 0) == 0
    assert not read_set


def test_select_ignores_descriptors_from_n_on_as_in_c(pipes):
    (r1, w1), _ = pipes
    os.write(w1, b"x")
    read_set = fd_set([r1])
    write_set = fd_set([w1])
    assert Select(min(r1, w1), read_set, write_set, None, 0) == 0
    assert not read_set | write_set


def test_select_takes_and_returns_lists_as_python_s_does(pipes):
    (r1, w1), (r2, w2) = pipes
    os.write(w1, b"x")
    assert Select([r1, r2], [w2], [], 0) == ([r1], [w2], [])
    assert Select({r2}, [], [], 0) == ([], [], [])


@pytest.mark.parametrize("fd", [-1, FD_SETSIZE])
def test_a_descriptor_that_select_cannot_handle_is_a_value_error(fd):
    with pytest.raises(ValueError, match="0 to 1023"):
        FD_SET(fd, fd_set())


# Standard streams


def test_standard_streams_are_those_of_sys_at_the_moment_in_bytes(monkeypatch):
    with tempfile.TemporaryFile("w+") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert csapp.stdout is file.buffer
        print("text ", end="")
        Fputs(b"bytes ", csapp.stdout)
        Fputs("text\n", sys.stdout)
        assert os.pread(file.fileno(), 100, 0) == b"text bytes text\n"  # in order, and flushed
    monkeypatch.setattr(sys, "stdin", None)
    assert csapp.stdin is None


def test_streams_of_other_files_are_flushed_by_the_caller():
    with tempfile.TemporaryFile() as file:
        Fputs(b"line\n", file)
        assert os.pread(file.fileno(), 100, 0) == b""
        file.flush()
        assert os.pread(file.fileno(), 100, 0) == b"line\n"


# Processes


def child(function):
    """Fork a child that runs the function and ends with its result, and return the child's process ID."""
    if (pid := Fork()) == 0:
        status = 99
        try:
            status = function()
        finally:
            os._exit(status)
    return pid


def test_a_child_is_forked_and_waited_for():
    pid = child(lambda: 7)
    ended, status = Waitpid(pid, 0)
    assert ended == pid
    assert WIFEXITED(status)
    assert WEXITSTATUS(status) == 7
    pid = child(lambda: 8)
    assert Wait() == (pid, 8 << 8)


def test_waitpid_without_hanging_returns_0_while_the_child_runs_and_kill_ends_it():
    pid = child(lambda: signal.pause() or 0)
    assert Waitpid(pid, WNOHANG) == (0, 0)
    Kill(pid, signal.SIGKILL)
    ended, status = Waitpid(pid)
    assert ended == pid
    assert WIFSIGNALED(status)
    assert WTERMSIG(status) == signal.SIGKILL


def test_execve_runs_a_program_whose_signals_have_their_default_action():
    r, w = os.pipe()

    def run():
        Dup2(w, csapp.STDOUT_FILENO)
        Execve("/bin/sh", ["sh", "-c", 'echo "$WORD"; kill -PIPE $$; echo not reached'], {"WORD": "hello"})

    pid = child(run)
    os.close(w)
    assert Read(r, 100) == b"hello\n"
    assert Read(r, 100) == b""
    os.close(r)
    _, status = Waitpid(pid)
    assert WIFSIGNALED(status)
    assert WTERMSIG(status) == signal.SIGPIPE


def test_an_execve_that_fails_restores_the_signals(capsys):
    before = signal.getsignal(signal.SIGPIPE)
    with pytest.raises(SystemExit):
        Execve("/no/such/program", ["program"], {})
    assert capsys.readouterr().err == "Execve error: No such file or directory\n"
    assert signal.getsignal(signal.SIGPIPE) == before == SIG_IGN


# Signals


@pytest.fixture
def usr1():
    before = signal.getsignal(SIGUSR1)
    yield
    signal.signal(SIGUSR1, before)


def test_a_handler_has_one_parameter_as_in_the_book_or_two(usr1):
    calls = []

    def one(sig):
        calls.append(("one", sig))

    def two(sig, frame):
        calls.append(("two", sig))

    def any_number(*args):
        calls.append(("any", args[0]))

    for handler in (one, two, any_number, calls.append):
        Signal(SIGUSR1, handler)
        Kill(os.getpid(), SIGUSR1)
    assert calls == [("one", SIGUSR1), ("two", SIGUSR1), ("any", SIGUSR1), SIGUSR1]


def test_signal_returns_the_previous_action_as_it_was_given(usr1):
    def handler(sig):
        pass

    Signal(SIGUSR1, SIG_IGN)
    assert Signal(SIGUSR1, handler) == SIG_IGN
    assert Signal(SIGUSR1, SIG_DFL) is handler
    assert Signal(SIGUSR1, print) == SIG_DFL
    assert Signal(SIGUSR1, SIG_DFL) is print


# Errors


def test_the_error_functions_print_and_exit_with_status_1(capsys):
    for call in (
        lambda: csapp.app_error("too many clients"),
        lambda: csapp.posix_error(2, "readdir error"),
        lambda: csapp.unix_error("nothing is being handled"),
    ):
        with pytest.raises(SystemExit) as caught:
            call()
        assert caught.value.code == 1
    try:
        os.stat("/no/such/file")
    except OSError:
        with pytest.raises(SystemExit):
            csapp.unix_error("stat error")
    assert capsys.readouterr().err.splitlines() == [
        "too many clients",
        "readdir error: No such file or directory",
        "nothing is being handled",
        "stat error: No such file or directory",
    ]


# Threads


def test_join_returns_what_the_routine_returned_or_gave_to_pthread_exit():
    def leaves(arg):
        with contextlib.suppress(Exception):
            Pthread_exit(arg * 3)

    for routine, result in ((lambda arg: arg * 2, 14), (leaves, 21), (lambda arg: None, None)):
        tid = Pthread_create(routine, 7)
        assert Pthread_join(tid) == result
        assert Pthread_join(tid) == result


def test_the_argument_may_be_left_out_and_is_then_none():
    assert Pthread_join(Pthread_create(lambda vargp: [vargp])) == [None]


def test_a_thread_knows_itself_by_the_id_that_its_creator_has():
    tid = Pthread_create(lambda vargp: Pthread_self())
    assert Pthread_join(tid) is tid
    assert tid is not Pthread_self()
    assert csapp.pthread_self() is Pthread_self()


def test_a_detached_thread_cannot_be_joined(capsys):
    go = Sem_init(0)
    tid = Pthread_create(P, go)
    Pthread_detach(tid)
    with pytest.raises(SystemExit):
        Pthread_join(tid)
    assert capsys.readouterr().err == "Pthread_join error: Invalid argument\n"
    V(go)
    tid.join(LONG)


def test_an_exception_of_a_routine_is_printed_and_ends_only_the_thread(monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(args.exc_value))

    def fails(vargp):
        raise KeyError(vargp)

    assert Pthread_join(Pthread_create(fails, "key")) is None
    assert [type(error) for error in printed] == [KeyError]


def test_a_thread_that_has_ended_keeps_neither_its_routine_nor_its_argument():
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    tid = Pthread_create(lambda vargp: None, thing)
    Pthread_join(tid)
    del thing
    gc.collect()
    assert gone() is None


def test_once_calls_each_routine_once_and_other_threads_wait_for_it():
    entered, go = Sem_init(0), Sem_init(0)
    calls = []

    def init():
        V(entered)
        P(go)
        calls.append(1)

    def routine(vargp):
        Pthread_once(init)
        return list(calls)

    tids = [Pthread_create(routine) for _ in range(3)]
    P(entered)
    assert calls == []
    V(go)
    assert [Pthread_join(tid) for tid in tids] == [[1]] * 3
    Pthread_once(lambda: calls.append(2))
    Pthread_once(lambda: calls.append(2))
    assert calls == [1, 2, 2]


def test_once_counts_a_call_that_raises_as_none():
    calls = []

    def init():
        calls.append(1)
        if len(calls) == 1:
            raise KeyError

    with pytest.raises(KeyError):
        Pthread_once(init)
    Pthread_once(init)
    Pthread_once(init)
    assert len(calls) == 2


# Semaphores


def test_a_semaphore_counts_and_makes_threads_wait():
    sem = Sem_init(2)
    P(sem)
    P(sem)
    assert not sem.acquire(blocking=False)
    assert not sem.acquire(timeout=0.01)
    tid = Pthread_create(P, sem)
    V(sem)
    Pthread_join(tid)
    assert not sem.acquire(blocking=False)


@pytest.mark.long
def test_a_mutex_protects_a_counter_of_two_threads():
    mutex = Sem_init(1)
    count = [0]

    def thread(niters):
        for _ in range(niters):
            P(mutex)
            value = count[0]
            count[0] = value + 1
            V(mutex)

    for tid in [Pthread_create(thread, 20_000) for _ in range(2)]:
        Pthread_join(tid)
    assert count == [40_000]


def test_a_signal_handler_may_increment_a_semaphore_that_the_thread_it_interrupts_is_using(on_alarm):
    sem = Sem_init(0)
    taken = 0

    def handler(*_):
        V(sem)

    on_alarm(handler, 0.0002, interval=0.0002)
    while taken < 500:
        V(sem)
        P(sem)
        P(sem)  # waits for the handler's unit
        taken += 1


def test_an_initial_value_below_0_is_a_value_error():
    with pytest.raises(ValueError, match="0 or more"):
        Sem_init(-1)


def test_semaphores_of_python_may_be_used_too():
    sem = threading.Semaphore(1)
    P(sem)
    V(sem)
    assert sem.acquire(blocking=False)

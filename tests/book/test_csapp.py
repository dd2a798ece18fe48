"""The book's functions: their results, the faults of the book's code, and how the capitalised wrappers exit."""

import contextlib
import errno
import gc
import inspect
import io
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rioecho
from rioecho import Rio, csapp
from support.peers import needs_ipv6
from support.signals import interrupted

LONG = 20.0  # timeout in seconds; expires only if something is broken


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        a.settimeout(LONG)
        b.settimeout(LONG)
        yield a, b


@pytest.fixture
def pipe():
    r, w = os.pipe()
    with io.FileIO(r) as reader, io.FileIO(w, "w") as writer:
        yield reader, writer


@pytest.fixture
def rio_of():
    """Return a function that makes a Rio with the book's buffer size, whose input is the given pieces and the end."""
    with contextlib.ExitStack() as stack:

        def rio_of(*pieces):
            a, b = map(stack.enter_context, socket.socketpair())
            for piece in pieces:
                b.sendall(piece)
            b.close()
            return csapp.rio_readinitb(a)

        yield rio_of


def python(code):
    """Run code in a child with a timeout, with the tested rioecho. Returns its exit status, stdout and stderr."""
    code = "import sys, threading\nfrom rioecho.csapp import *\n" + code
    path = str(Path(rioecho.__file__).parents[1])
    child = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return child.returncode, child.stdout, child.stderr


# Names


def test_all_names_of_the_book_are_defined():
    names = """
        Socket Bind Listen Accept Connect Close Getaddrinfo Freeaddrinfo Getnameinfo Open_clientfd Open_listenfd
        Rio_readn Rio_writen Rio_readinitb Rio_readlineb Rio_readnb Fgets Fputs
        rio_readn rio_writen rio_readinitb rio_readlineb rio_readnb open_clientfd open_listenfd
        Setsockopt Open Read Write Lseek Dup2 Stat Fstat Select Fork Wait Waitpid Execve Kill Signal
        Pthread_create Pthread_join Pthread_detach Pthread_self Sem_init P V
        AF_INET SOCK_STREAM MAXLINE MAXBUF RIO_BUFSIZE LISTENQ STDIN_FILENO STDOUT_FILENO SO_REUSEADDR SOL_SOCKET
    """
    assert set(names.split()) <= set(csapp.__all__)
    assert all(hasattr(csapp, name) for name in csapp.__all__)
    assert len(set(csapp.__all__)) == len(csapp.__all__)
    assert (csapp.MAXLINE, csapp.RIO_BUFSIZE, csapp.LISTENQ) == (8192, 8192, 1024)


def test_address_constants_are_those_of_the_socket_module():
    constants = [name for name in csapp.__all__ if re.match("(AF|AI|NI|SOCK)_", name)]
    assert len(constants) > 15
    for name in constants:
        assert getattr(csapp, name) == getattr(socket, name)


def test_every_function_has_a_docstring():
    for name in csapp.__all__:
        if callable(getattr(csapp, name)) and not name.isupper():
            assert inspect.getdoc(getattr(csapp, name)), name


def test_wrapper_has_its_own_name_and_the_signature_of_the_wrapped_function():
    assert csapp.Rio_readlineb.__name__ == "Rio_readlineb"
    assert inspect.signature(csapp.Rio_readlineb) == inspect.signature(csapp.rio_readlineb)
    assert inspect.signature(csapp.Open_listenfd) == inspect.signature(csapp.open_listenfd)
    assert csapp.rio_readlineb.__name__ == "rio_readlineb"


# The RIO package


def test_readn_reads_exactly_n_bytes_and_leaves_the_rest_in_the_descriptor(pipe):
    reader, writer = pipe
    writer.write(b"abcdefgh")
    writer.close()
    assert csapp.rio_readn(reader.fileno(), 3) == b"abc"
    assert csapp.rio_readn(reader, 0) == b""
    assert csapp.rio_readn(reader, 4) == b"defg"
    assert os.read(reader.fileno(), 100) == b"h"


def test_readn_waits_for_data_that_arrives_in_pieces(pair):
    a, b = pair
    sending = threading.Thread(target=lambda: [b.send(b"%d" % i) for i in range(10)])
    sending.start()
    assert csapp.rio_readn(a, 10) == b"0123456789"
    sending.join(LONG)


def test_readn_returns_fewer_bytes_only_at_the_end(pipe):
    reader, writer = pipe
    writer.write(b"abc")
    writer.close()
    assert csapp.rio_readn(reader.fileno(), 10) == b"abc"
    assert csapp.rio_readn(reader.fileno(), 10) == b""


def test_readn_attaches_the_bytes_read_to_an_error(pair):
    a, b = pair
    a.settimeout(0.05)
    b.send(b"abcd")
    with pytest.raises(TimeoutError) as caught:
        csapp.rio_readn(a, 10)
    assert caught.value.partial == b"abcd"
    with pytest.raises(TimeoutError) as caught:
        csapp.rio_readn(a, 10)
    assert caught.value.partial == b""


def test_readn_attaches_the_bytes_read_to_the_exception_of_a_signal_handler(pair, on_alarm):
    a, b = pair
    b.send(b"abcd")

    caught = interrupted(on_alarm, lambda: csapp.rio_readn(a, 10))
    assert caught.value.partial == b"abcd"


def test_writen_sends_all(pair):
    a, b = pair
    data = os.urandom(1 << 20)
    received = []
    receiving = threading.Thread(target=lambda: received.append(csapp.rio_readn(b, len(data))))
    receiving.start()
    assert csapp.rio_writen(a, data) == len(data)
    receiving.join(LONG)
    assert received == [data]
    assert csapp.rio_writen(a, b"") == 0


def test_writen_reports_the_number_of_bytes_sent_before_an_error(pair):
    a, b = pair
    data = os.urandom(1 << 22)
    a.settimeout(0.05)
    with pytest.raises(TimeoutError) as caught:
        csapp.rio_writen(a, data)
    sent = caught.value.characters_written
    assert 0 < sent < len(data)
    a.close()
    assert csapp.rio_readn(b, len(data)) == data[:sent]


def test_readlineb_and_readnb_share_one_buffer(rio_of):
    rp = rio_of(b"one\ntwo\n", b"12345678", b"three\nrest")
    assert isinstance(rp, Rio)
    assert csapp.rio_readlineb(rp) == b"one\n"
    assert csapp.rio_readlineb(rp, 100) == b"two\n"
    assert csapp.rio_readnb(rp, 8) == b"12345678"
    assert csapp.rio_readnb(rp, 0) == b""
    assert csapp.rio_readlineb(rp, maxlen=7) == b"three\n"
    assert csapp.rio_readnb(rp, 100) == b"rest"
    assert csapp.rio_readnb(rp, 100) == b""
    assert csapp.rio_readlineb(rp) == b""


def test_readinitb_leaves_the_descriptor_to_the_caller(pair):
    a, _ = pair
    rp = csapp.rio_readinitb(a.fileno())
    del rp
    os.fstat(a.fileno())


@pytest.mark.parametrize("n", [-1, -(10**30)])
def test_negative_count_is_a_value_error_and_consumes_nothing(pipe, n):
    reader, writer = pipe
    writer.write(b"abc")
    rp = csapp.rio_readinitb(reader)
    for call in (lambda: csapp.rio_readn(reader, n), lambda: csapp.rio_readnb(rp, n)):
        with pytest.raises(ValueError, match="n must be 0 or more"):
            call()
    assert csapp.rio_readnb(rp, 3) == b"abc"


@pytest.mark.parametrize("size", [1.5, None, "10", b"10"], ids=repr)
def test_size_of_another_type_is_a_type_error_and_consumes_nothing(pipe, size):
    reader, writer = pipe
    writer.write(b"abc")
    rp = csapp.rio_readinitb(reader)
    for call in (
        lambda: csapp.rio_readn(reader, size),
        lambda: csapp.rio_readnb(rp, size),
        lambda: csapp.rio_readlineb(rp, size),
        lambda: csapp.Rio_readlineb(rp, size),
        lambda: csapp.Fgets(size, io.StringIO("abc")),
    ):
        with pytest.raises(TypeError):
            call()
    assert csapp.rio_readnb(rp, 3) == b"abc"


# Faults of the book's C code


@pytest.mark.parametrize("readlineb", [csapp.rio_readlineb, csapp.Rio_readlineb])
def test_line_longer_than_maxlen_is_returned_in_pieces(rio_of, readlineb):
    rp = rio_of(b"a" * 20 + b"\n" + b"next\n")
    pieces = [readlineb(rp, 9) for _ in range(4)]
    assert pieces == [b"a" * 8, b"a" * 8, b"aaaa\n", b"next\n"]
    assert [piece.endswith(b"\n") for piece in pieces] == [False, False, True, True]


def test_line_that_just_fits_is_returned_whole(rio_of):
    rp = rio_of(b"x" * 8190 + b"\n", b"y" * 8191 + b"\n")
    assert csapp.rio_readlineb(rp) == b"x" * 8190 + b"\n"
    assert csapp.rio_readlineb(rp) == b"y" * 8191
    assert csapp.rio_readlineb(rp) == b"\n"


@pytest.mark.parametrize("maxlen", [1, 0, -1, -8192])
def test_maxlen_without_room_for_a_byte_is_an_error_and_not_an_end_of_input(rio_of, maxlen):
    rp = rio_of(b"line\n")
    for readlineb in (csapp.rio_readlineb, csapp.Rio_readlineb):
        with pytest.raises(ValueError, match=r"maxlen must be 2 or more, not .*: it counts the NUL"):
            readlineb(rp, maxlen)
    assert csapp.rio_readlineb(rp, 2) == b"l"
    assert csapp.rio_readlineb(rp) == b"ine\n"


@pytest.mark.parametrize("maxlen", [4, 5, 8192])
def test_unterminated_last_line_is_returned_without_a_newline(rio_of, maxlen):
    rp = rio_of(b"abc")
    assert csapp.rio_readlineb(rp, maxlen) == b"abc"
    assert csapp.rio_readlineb(rp, maxlen) == b""


def test_line_may_contain_nul_bytes(rio_of):
    rp = rio_of(b"a\0b\n\0\n")
    assert csapp.rio_readlineb(rp) == b"a\0b\n"
    assert csapp.rio_readlineb(rp) == b"\0\n"


def test_error_after_progress_does_not_discard_the_bytes_received(pair):
    a, b = pair
    a.settimeout(0.05)
    rp = csapp.rio_readinitb(a)
    for read in (lambda: csapp.rio_readlineb(rp), lambda: csapp.rio_readnb(rp, 9)):
        b.send(b"half")
        with pytest.raises(TimeoutError):
            read()
        b.send(b"half\n")
        assert read() == b"halfhalf\n"


def test_failure_does_not_exit_with_status_0():
    status, out, err = python("Close(12345)")
    assert (status, out) == (1, "")
    assert err == f"Close error: {os.strerror(errno.EBADF)}\n"


# Exit of the wrappers


# Leaves the child no process to fork and no thread to start; a limit does not hold for root.
NO_PROCESSES = "import os, resource; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); os.getuid() or os.setuid(54321)"
CANNOT_FAIL = {
    "Freeaddrinfo",
    "Munmap",
    "Closedir",
    "Pthread_self",
    "Pthread_once",
    "Pthread_exit",
    "Sem_init",
    "Sleep",
}
FAILURES = {
    "Socket": "Socket(AF_INET, SOCK_STREAM, 250)",
    "Bind": "Bind(Socket(AF_INET, SOCK_STREAM), ('203.0.113.1', 0))",
    "Listen": "Listen(12345, 1)",
    "Accept": "Accept(Socket(AF_INET, SOCK_STREAM))",
    "Connect": "fd = Socket(AF_INET, SOCK_STREAM); Bind(fd, ('127.0.0.1', 0)); Connect(fd, ('255.255.255.255', 9))",
    "Close": "Close(-1)",
    "Getaddrinfo": "Getaddrinfo('no host', 80)",
    "Getnameinfo": "Getnameinfo(('no host', 80))",
    "Open_clientfd": "Open_clientfd('255.255.255.255', 9)",
    "Open_listenfd": "Open_listenfd(0, '203.0.113.1')",
    "Rio_readn": "Rio_readn(12345, 1)",
    "Rio_writen": "import os; Rio_writen(os.open('/', os.O_RDONLY), b'x')",
    "Rio_readinitb": "Rio_readinitb(12345)",
    "Rio_readlineb": "import os; Rio_readlineb(Rio_readinitb(os.open('/', os.O_RDONLY)))",
    "Rio_readnb": "import os; Rio_readnb(Rio_readinitb(os.open('/', os.O_RDONLY)), 1)",
    "Setsockopt": "Setsockopt(12345, SOL_SOCKET, SO_REUSEADDR, 1)",
    "Open": "Open('/no/such/file', O_RDONLY, 0)",
    "Read": "Read(12345, 1)",
    "Write": "Write(12345, b'x')",
    "Lseek": "Lseek(12345, 0, SEEK_SET)",
    "Dup2": "Dup2(12345, 0)",
    "Stat": "Stat('/no/such/file')",
    "Fstat": "Fstat(12345)",
    "Mmap": "Mmap(0, 1, 2, 0)",
    "Opendir": "Opendir('/no/such/directory')",
    "Readdir": "import os, tempfile; d = tempfile.mkdtemp(); dirp = Opendir(d); os.rmdir(d); Readdir(dirp)",
    "Select": "Select([20], [], [], 0)",
    "Fork": f"{NO_PROCESSES}; Fork()",
    "Wait": "Wait()",
    "Waitpid": "Waitpid(-1)",
    "Execve": "Execve('/no/such/program', ['program'], environ)",
    "Kill": "Kill(2**31 - 1, SIGTERM)",
    "Signal": "Signal(SIGKILL, SIG_DFL)",
    "Pthread_create": f"{NO_PROCESSES}; Pthread_create(print)",
    "Pthread_join": "Pthread_join(Pthread_self())",
    "Pthread_detach": "tid = Pthread_create(P, Sem_init(0)); Pthread_detach(tid); Pthread_detach(tid)",
    "Fgets": "Fgets(10, open('/dev/null', 'w'))",
    "Fputs": "Fputs('text', open('/dev/null'))",
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", FAILURES)
def test_wrapper_prints_its_name_and_the_reason_and_exits_with_status_1(name):
    if os.environ.get("RIOECHO_BUILD") == "sanitize" and name in ("Fork", "Pthread_create", "Pthread_detach"):
        pytest.skip("LeakSanitizer aborts a process that ends without finalizing Python")
    code = f"print('before')\ntry:\n    {FAILURES[name]}\nexcept Exception: pass\nprint('after')"
    status, out, err = python(code)
    assert (status, out) == (1, "before\n")
    assert re.match(rf"{name} error: \S.*\n", err)
    assert "Traceback" not in err


def test_failures_cover_every_wrapper_that_can_fail():
    wrappers = {name for name in csapp.__all__ if name[0].isupper() and not name.isupper()}
    assert wrappers - CANNOT_FAIL == set(FAILURES)


@pytest.mark.parametrize("host", ["..", "a" * 70 + ".x", "no host", ""], ids=repr)
def test_host_without_an_address_ends_the_process(host, capsys):
    for call in (csapp.Getaddrinfo, csapp.Open_clientfd):
        with pytest.raises(SystemExit) as caught:
            call(host, 80)
        assert caught.value.code == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(rf"{call.__name__} error: .+\n", err)


def test_the_reason_contains_host_and_port(capsys):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(SystemExit):
            csapp.Open_clientfd("127.0.0.1", port)
    reason = f"cannot connect to 127.0.0.1 port {port}: {os.strerror(errno.ECONNREFUSED)}"
    assert capsys.readouterr().err == f"Open_clientfd error: {reason}\n"


def test_timeout_is_a_failure(pair, capsys):
    a, _ = pair
    a.settimeout(0.01)
    with pytest.raises(SystemExit):
        csapp.Rio_readlineb(csapp.Rio_readinitb(a))
    assert re.fullmatch(r"Rio_readlineb error: .*timed out.*\n", capsys.readouterr().err)


def test_text_that_cannot_be_decoded_is_a_failure_of_fgets(capsys):
    with pytest.raises(SystemExit):
        csapp.Fgets(10, io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="ascii"))
    assert capsys.readouterr().err.startswith("Fgets error: ")


INVALID_ADDRESSES = {
    "Open_clientfd": (lambda: csapp.Open_clientfd("127.0.0.1", 70000), "a port must be a number from 0 to 65535 or"),
    "Open_listenfd": (lambda: csapp.Open_listenfd("-1"), "a port must be a number from 0 to 65535 or"),
    "Getaddrinfo": (lambda: csapp.Getaddrinfo("127.0.0.1\0.x", 80), "the host name contains a NUL"),
}


@pytest.mark.parametrize("name", INVALID_ADDRESSES)
def test_an_invalid_host_or_port_is_a_failure(name, capsys):
    call, reason = INVALID_ADDRESSES[name]
    with pytest.raises(SystemExit) as raised:
        call()
    assert raised.value.code == 1
    assert capsys.readouterr().err.startswith(f"{name} error: {reason}")


MISTAKES = {
    "no port": (lambda: csapp.Open_listenfd(None), TypeError),
    "negative count": (lambda: csapp.Rio_readn(0, -1), ValueError),
    "text for bytes": (lambda: csapp.Rio_writen(1, "text"), TypeError),
    "text for a descriptor": (lambda: csapp.Accept("fd"), TypeError),
    "no room": (lambda: csapp.Fgets(1, io.StringIO("x")), ValueError),
    "bytes for text": (lambda: csapp.Fputs(b"bytes", io.StringIO()), TypeError),
    "text for a number": (lambda: csapp.Socket("AF_INET", 1), TypeError),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_argument_raises_and_does_not_exit(mistake):
    call, error = MISTAKES[mistake]
    with pytest.raises(error):
        call()


def test_keyboard_interrupt_passes_through(pair, on_alarm):
    rp = csapp.Rio_readinitb(pair[0])
    interrupted(on_alarm, lambda: csapp.Rio_readlineb(rp))


def test_failure_in_another_thread_ends_the_process_and_not_only_the_thread():
    status, out, err = python(
        "print('buffered', end='')\n"
        "thread = threading.Thread(target=Close, args=(12345,))\n"
        "thread.start(); thread.join(); print(' and not reached')"
    )
    assert (status, out) == (1, "buffered")
    assert err == f"Close error: {os.strerror(errno.EBADF)}\n"


def test_failure_in_another_thread_ends_the_process_even_if_printing_fails():
    status, _, _ = python(
        "sys.stderr.close(); sys.stdout.close()\n"
        "thread = threading.Thread(target=Close, args=(12345,))\n"
        "thread.start(); thread.join()"
    )
    assert status == 1


def test_failure_in_a_thread_that_threading_did_not_start_ends_the_process():
    status, _, err = python(
        "import _thread\nlock = _thread.allocate_lock(); lock.acquire()\n"
        "_thread.start_new_thread(Close, (12345,)); lock.acquire(timeout=30)"
    )
    assert status == 1
    assert err.startswith("Close error: ")


# The sockets interface


@pytest.fixture
def listenfd():
    fd = csapp.Open_listenfd(0, "127.0.0.1")
    yield fd
    os.close(fd)


def port_of(fd):
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockname()[1]


def test_server_and_client_with_the_basic_calls():
    listenfd = csapp.Socket(csapp.AF_INET, csapp.SOCK_STREAM)
    csapp.Bind(listenfd, ("127.0.0.1", 0))
    csapp.Listen(listenfd, csapp.LISTENQ)
    clientfd = csapp.Socket(csapp.AF_INET, csapp.SOCK_STREAM, 0)
    csapp.Connect(clientfd, ("127.0.0.1", port_of(listenfd)))
    connfd, clientaddr = csapp.Accept(listenfd)
    assert clientaddr == ("127.0.0.1", port_of(clientfd))
    for fd in (listenfd, clientfd, connfd):
        assert type(fd) is int
        assert os.get_blocking(fd)
        assert not os.get_inheritable(fd)
    assert csapp.Rio_writen(clientfd, b"hello\n") == 6
    assert csapp.Rio_readn(connfd, 6) == b"hello\n"
    for fd in (listenfd, clientfd, connfd):
        assert csapp.Close(fd) is None


def test_ipv4_client_of_a_server_for_both_families_has_a_plain_ipv4_address():
    listenfd = csapp.Open_listenfd(0)
    clientfd = csapp.Open_clientfd("127.0.0.1", port_of(listenfd))
    connfd, clientaddr = csapp.Accept(listenfd)
    assert clientaddr == ("127.0.0.1", port_of(clientfd))
    for fd in (listenfd, clientfd, connfd):
        csapp.Close(fd)


@needs_ipv6
def test_client_over_ipv6_has_its_ipv6_address():
    listenfd = csapp.open_listenfd(0, "::1")
    clientfd = csapp.Open_clientfd("::1", port_of(listenfd))
    connfd, clientaddr = csapp.Accept(listenfd)
    assert clientaddr[:2] == ("::1", port_of(clientfd))
    assert csapp.Getnameinfo(clientaddr, csapp.NI_NUMERICHOST) == ("::1", str(port_of(clientfd)))
    for fd in (listenfd, clientfd, connfd):
        csapp.Close(fd)


def test_unix_sockets_have_paths_for_addresses(tmp_path):
    path = str(tmp_path / "socket")
    listenfd = csapp.Socket(csapp.AF_UNIX, csapp.SOCK_STREAM)
    csapp.Bind(listenfd, path)
    csapp.Listen(listenfd, 1)
    clientfd = csapp.Socket(csapp.AF_UNIX, csapp.SOCK_STREAM)
    csapp.Connect(clientfd, path)
    connfd, clientaddr = csapp.Accept(listenfd)
    assert clientaddr == ""
    for fd in (listenfd, clientfd, connfd):
        csapp.Close(fd)


def test_connect_to_a_unix_socket_retries_after_signals(tmp_path, on_alarm):
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as queued:
        listener.bind(path)
        listener.listen(0)
        queued.connect(path)
        calls = []

        def accept(*_):
            calls.append(1)
            assert len(calls) < LONG / 0.02, "Connect does not return"
            if len(calls) == 3:
                listener.accept()[0].close()

        on_alarm(accept, 0.02, interval=0.02)
        fd = csapp.Socket(csapp.AF_UNIX, csapp.SOCK_STREAM)
        csapp.Connect(fd, path)
        assert csapp.Rio_writen(fd, b"connected") == 9
        csapp.Close(fd)


def test_accept_continues_after_a_signal(listenfd, on_alarm):
    calls, clients = [], []

    def connect(*_):
        calls.append(1)  # first: another signal may interrupt this
        if len(calls) == 3:
            clients.append(socket.create_connection(("127.0.0.1", port_of(listenfd)), timeout=LONG))

    on_alarm(connect, 0.02, interval=0.02)
    connfd, _ = csapp.Accept(listenfd)
    csapp.Close(connfd)
    clients[0].close()


def test_failed_calls_leave_the_descriptor_open(pair, capsys):
    fd = pair[0].fileno()
    for call in (
        lambda: csapp.Bind(fd, "/no/such/directory/socket"),
        lambda: csapp.Accept(fd),
        lambda: csapp.Connect(fd, "/no/such/socket"),
    ):
        with pytest.raises(SystemExit):
            call()
    gc.collect()
    os.fstat(fd)


def test_signal_handler_that_raises_leaves_the_listening_descriptor_open(listenfd, on_alarm):
    for microseconds in range(1, 200):  # interrupt Accept at every point up to and including its wait
        interrupted(on_alarm, lambda: csapp.Accept(listenfd), microseconds / 1e6)
    gc.collect()
    os.fstat(listenfd)


def test_default_timeout_of_the_socket_module_makes_no_descriptor_non_blocking(listenfd):
    address = ("127.0.0.1", port_of(listenfd))
    socket.setdefaulttimeout(5)
    try:
        clientfd = csapp.Socket(csapp.AF_INET, csapp.SOCK_STREAM)
        csapp.Connect(clientfd, address)
        connfd, _ = csapp.Accept(listenfd)
    finally:
        socket.setdefaulttimeout(None)
    for fd in (listenfd, clientfd, connfd):
        assert os.get_blocking(fd)
    csapp.Close(clientfd)
    csapp.Close(connfd)


def test_non_blocking_listener_stays_non_blocking_and_returns_blocking_connections(listenfd, capsys):
    os.set_blocking(listenfd, False)
    with pytest.raises(SystemExit):
        csapp.Accept(listenfd)
    assert capsys.readouterr().err == f"Accept error: {os.strerror(errno.EAGAIN)}\n"
    clientfd = csapp.Open_clientfd("127.0.0.1", port_of(listenfd))
    connfd, _ = csapp.Accept(listenfd)
    assert os.get_blocking(connfd)
    assert not os.get_blocking(listenfd)
    csapp.Close(clientfd)
    csapp.Close(connfd)


def test_getaddrinfo_returns_a_list_and_freeaddrinfo_does_nothing():
    found = csapp.Getaddrinfo(
        "127.0.0.1", "80", csapp.AF_INET, csapp.SOCK_STREAM, 0, csapp.AI_NUMERICHOST | csapp.AI_NUMERICSERV
    )
    assert [(family, kind, address) for family, kind, _, _, address in found] == [
        (csapp.AF_INET, csapp.SOCK_STREAM, ("127.0.0.1", 80))
    ]
    assert csapp.Freeaddrinfo(found) is None
    assert csapp.Getaddrinfo(None, 80, type=csapp.SOCK_STREAM, flags=csapp.AI_PASSIVE)
    assert csapp.Getaddrinfo("127.0.0.1", None)


def test_getnameinfo_accepts_addresses_of_both_families():
    numeric = csapp.NI_NUMERICHOST | csapp.NI_NUMERICSERV
    assert csapp.Getnameinfo(("127.0.0.1", 7), numeric) == ("127.0.0.1", "7")
    assert csapp.Getnameinfo(("::1", 7, 0, 0), numeric) == ("::1", "7")
    assert csapp.Getnameinfo(("::1", 7), numeric) == ("::1", "7")
    assert csapp.Getnameinfo(("::ffff:127.0.0.1", 7, 0, 0), numeric) == ("127.0.0.1", "7")
    host, port = csapp.Getnameinfo(("127.0.0.1", 7))
    assert host
    assert port


@pytest.mark.parametrize("error", [socket.EAI_AGAIN, socket.EAI_FAIL])
def test_getnameinfo_returns_the_numeric_address_if_no_name_server_answers(monkeypatch, capsys, error):
    def without_name_servers(address, flags, getnameinfo=socket.getnameinfo):
        if not flags & socket.NI_NUMERICHOST:
            raise socket.gaierror(error, "no answer")
        return getnameinfo(address, flags)

    monkeypatch.setattr(socket, "getnameinfo", without_name_servers)
    assert csapp.Getnameinfo(("192.0.2.1", 7), csapp.NI_NUMERICSERV) == ("192.0.2.1", "7")
    with pytest.raises(SystemExit):
        csapp.Getnameinfo(("192.0.2.1", 7), csapp.NI_NAMEREQD)
    assert capsys.readouterr().err == "Getnameinfo error: no answer\n"


# Standard I/O


def test_fgets_reads_lines_of_text_and_bytes_and_none_at_the_end():
    for stream, lines in (
        (io.StringIO("one\ntwo"), ["one\n", "two", None, None]),
        (io.BytesIO(b"one\ntwo"), [b"one\n", b"two", None, None]),
    ):
        assert [csapp.Fgets(100, stream) for _ in lines] == lines


def test_fgets_reads_at_most_n_minus_1_characters():
    stream = io.StringIO("äöüß\n")
    assert [csapp.Fgets(4, stream) for _ in range(3)] == ["äöü", "ß\n", None]
    assert csapp.Fgets(2, io.BytesIO(b"ab")) == b"a"


@pytest.mark.parametrize("n", [1, 0, -1])
def test_fgets_without_room_for_a_character_is_a_value_error(n):
    with pytest.raises(ValueError, match="n must be 2 or more"):
        csapp.Fgets(n, io.StringIO("text"))


def test_fgets_reads_from_a_rio(rio_of):
    rp = rio_of(b"one\ntwo")
    assert [csapp.Fgets(csapp.MAXLINE, rp) for _ in range(3)] == [b"one\n", b"two", None]


def test_fputs_writes_text_and_bytes():
    for stream, text in ((io.StringIO(), "text\n"), (io.BytesIO(), b"bytes\n")):
        assert csapp.Fputs(text, stream) is None
        assert stream.getvalue() == text

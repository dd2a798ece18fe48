"""The calls of csapp: the book's forms with a buffer, the forms of Python, and the errors that show the right call."""

import array
import os
import re
import signal
import socket
import struct
import threading
import time

import pytest

from rioecho import Rio, csapp
from rioecho.csapp import MAXLINE

LONG = 20.0  # timeout in seconds; expires only if something is broken
LETTERS = {"lower-case": str, "capitalized": str.capitalize}


@pytest.fixture(params=LETTERS.values(), ids=LETTERS)
def function(request):
    """Return a function that returns the function of a lower-case name, or its wrapper."""
    return lambda name: getattr(csapp, request.param(name))


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        a.settimeout(LONG)
        yield a, b


# The book's forms


def test_the_book_s_loop_reads_lines_into_a_buffer_until_the_count_is_0(function, pair):
    ours, theirs = pair
    theirs.sendall(b"one\ntwo\n\nlast")
    theirs.shutdown(socket.SHUT_WR)
    rio = function("rio_readinitb")(ours.fileno())
    buf = bytearray(b"?" * MAXLINE)
    lines = []
    while (n := function("rio_readlineb")(rio, buf, MAXLINE)) != 0:
        lines.append(bytes(buf[:n]))
        assert buf[n:] == b"?" * (MAXLINE - n)  # no NUL is stored
        buf[:n] = b"?" * n
    assert lines == [b"one\n", b"two\n", b"\n", b"last"]


def test_a_line_that_does_not_fit_is_stored_in_pieces_of_maxlen_minus_1(function, pair):
    ours, theirs = pair
    theirs.sendall(b"a" * 9 + b"\n")
    rio = csapp.rio_readinitb(ours)
    buf = bytearray(5)
    counts = [function("rio_readlineb")(rio, buf, 5) for _ in range(3)]
    assert counts == [4, 4, 2]
    assert buf[:2] == b"a\n"


def test_counted_bytes_are_stored_in_a_buffer_and_share_that_of_the_lines(function, pair):
    ours, theirs = pair
    body = os.urandom(100_000)
    threading.Thread(target=lambda: (theirs.sendall(b"100000\n" + body + b"end"), theirs.close())).start()
    rio = csapp.rio_readinitb(ours)
    buf = bytearray(200_000)
    assert function("rio_readlineb")(rio, buf, 100) == 7
    assert function("rio_readnb")(rio, buf, 100_000) == 100_000
    assert buf[:100_000] == body
    assert function("rio_readnb")(rio, buf, 100) == 3
    assert buf[:3] == b"end"
    assert function("rio_readnb")(rio, buf, 100) == 0


def test_unbuffered_reads_store_exactly_n_bytes(function, pair):
    ours, theirs = pair
    theirs.sendall(b"abcdefgh")
    theirs.shutdown(socket.SHUT_WR)
    buf = bytearray(10)
    assert function("rio_readn")(ours.fileno(), buf, 3) == 3
    assert ours.recv(2) == b"de"
    assert function("rio_readn")(ours.fileno(), buf, 10) == 3
    assert buf == b"fgh" + bytes(7)
    assert function("rio_readn")(ours.fileno(), buf, 10) == 0
    assert function("rio_readn")(ours.fileno(), buf, 0) == 0


def test_the_first_n_bytes_of_a_buffer_are_written(function, pair):
    ours, theirs = pair
    buf = bytearray(b"hello, world")
    assert function("rio_writen")(ours.fileno(), buf, 5) == 5
    assert function("rio_writen")(ours.fileno(), bytes(buf), 0) == 0
    assert function("rio_writen")(ours.fileno(), buf) == 12
    assert theirs.recv(100) == b"hellohello, world"


@pytest.mark.parametrize("buf", [bytearray(8), memoryview(bytearray(8)), array.array("i", [0, 0])], ids=type)
def test_any_writable_buffer_will_do_and_is_free_afterwards(pair, buf):
    ours, theirs = pair
    theirs.sendall(b"12345678abc\n")
    assert csapp.rio_readn(ours, buf, 8) == 8
    assert bytes(buf) == b"12345678"
    assert csapp.rio_readlineb(csapp.rio_readinitb(ours), buf, 8) == 4
    assert csapp.rio_writen(ours, buf, 4) == 4
    assert theirs.recv(100) == b"abc\n"
    if isinstance(buf, bytearray):
        buf.append(1)  # no error: nothing exports it any more


def test_a_buffer_that_is_too_small_is_a_value_error_and_nothing_is_read_or_written(function, pair):
    ours, theirs = pair
    theirs.sendall(b"line\n")
    rio = csapp.rio_readinitb(ours)
    calls = [
        lambda: function("rio_readlineb")(rio, bytearray(99), 100),
        lambda: function("rio_readnb")(rio, bytearray(4), 5),
        lambda: function("rio_readn")(ours, bytearray(4), 5),
        lambda: function("rio_writen")(ours, b"data", 5),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"the buffer has \d+ bytes, fewer than the \d+ of the call"):
            call()
    assert csapp.rio_readlineb(rio) == b"line\n"
    with pytest.raises(BlockingIOError):
        theirs.recv(1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("n", [-1, 1, 0])
def test_a_wrong_size_is_a_value_error_in_the_book_s_form_too(pair, n):
    ours, theirs = pair
    theirs.sendall(b"line\n")
    rio = csapp.rio_readinitb(ours)
    with pytest.raises(ValueError, match="maxlen must be 2 or more"):
        csapp.rio_readlineb(rio, bytearray(10), n)
    if n < 0:
        for call in (csapp.rio_readnb, csapp.rio_readn, csapp.rio_writen):
            with pytest.raises(ValueError, match="n must be 0 or more"):
                call(rio if call is csapp.rio_readnb else ours, bytearray(10), n)
    assert csapp.rio_readlineb(rio) == b"line\n"


def test_after_a_timeout_the_book_s_form_goes_on_with_all_bytes(pair):
    ours, theirs = pair
    ours.settimeout(0.05)
    rio = csapp.rio_readinitb(ours)
    buf = bytearray(100)
    for read in (lambda: csapp.rio_readlineb(rio, buf, 100), lambda: csapp.rio_readnb(rio, buf, 9)):
        theirs.sendall(b"half")
        with pytest.raises(TimeoutError):
            read()
        theirs.sendall(b"half\n")
        assert read() == 9
        assert buf[:9] == b"halfhalf\n"


def test_an_unbuffered_read_that_fails_leaves_what_it_read_in_the_buffer_and_in_the_error(pair):
    ours, theirs = pair
    ours.settimeout(0.05)
    theirs.sendall(b"abcd")
    buf = bytearray(10)
    with pytest.raises(TimeoutError) as caught:
        csapp.rio_readn(ours, buf, 10)
    assert caught.value.partial == b"abcd"
    assert buf == b"abcd" + bytes(6)
    theirs.sendall(b"ef")
    assert ours.recv(100) == b"ef"


def test_a_failed_write_in_the_book_s_form_says_how_much_was_written(pair):
    ours, theirs = pair
    ours.settimeout(0.05)
    data = bytearray(os.urandom(1 << 22))
    with pytest.raises(TimeoutError) as caught:
        csapp.rio_writen(ours, data, len(data) - 1)
    ours.close()
    assert csapp.rio_readn(theirs, len(data)) == data[: caught.value.characters_written]


# The forms of Python


def test_sizes_may_be_given_by_name(pair):
    ours, theirs = pair
    theirs.sendall(b"line\nabcdef")
    rio = csapp.rio_readinitb(ours)
    buf = bytearray(10)
    assert csapp.rio_readlineb(rio, maxlen=10) == b"line\n"
    assert csapp.rio_readnb(rio, n=2) == b"ab"
    assert csapp.rio_readnb(rio, buf, n=2) == 2
    assert csapp.rio_readnb(rio, buf=buf, n=2) == 2
    assert buf[:2] == b"ef"
    theirs.sendall(b"gh")
    assert csapp.rio_readn(ours, n=2) == b"gh"


# Wrong calls

RIO = (
    r"{Rio}_readlineb\(rio, buf, MAXLINE\) or line = {Rio}_readlineb\(rio, MAXLINE\), with rio = {Rio}_readinitb\(fd\)"
)
READN = r"n = {Rio}_readn\(fd, buf, n\) or data = {Rio}_readn\(fd, n\)"
READNB = r"n = {Rio}_readnb\(rio, buf, n\) or data = {Rio}_readnb\(rio, n\), with rio = {Rio}_readinitb\(fd\)"
WRITEN = r"{Rio}_writen\(fd, buf, n\) or {Rio}_writen\(fd, data\)"
WRONG = {
    "a descriptor for a rio_t": ("rio_readlineb", lambda fd, rio: (fd, MAXLINE), RIO),
    "a descriptor for a rio_t, with a buffer": ("rio_readlineb", lambda fd, rio: (fd, bytearray(9), 9), RIO),
    "a socket for a rio_t": ("rio_readnb", lambda fd, rio: (object(), 1), READNB),
    "no rio_t": ("rio_readlineb", lambda fd, rio: (), RIO),
    "a buffer without a size": ("rio_readlineb", lambda fd, rio: (rio, bytearray(9)), RIO),
    "the arguments in the wrong order": ("rio_readlineb", lambda fd, rio: (rio, MAXLINE, bytearray(MAXLINE)), RIO),
    "one argument too many": ("rio_readlineb", lambda fd, rio: (rio, bytearray(9), 9, 9), RIO),
    "bytes for a buffer": ("rio_readnb", lambda fd, rio: (rio, b"12345", 5), READNB),
    "text for a buffer": ("rio_readn", lambda fd, rio: (fd, "text", 4), READN),
    "no size": ("rio_readn", lambda fd, rio: (fd,), READN),
    "no size, buffered": ("rio_readnb", lambda fd, rio: (rio,), READNB),
    "a size of another type": ("rio_readn", lambda fd, rio: (fd, bytearray(4), "4"), READN),
    "text to write": ("rio_writen", lambda fd, rio: (fd, "text", 4), WRITEN),
    "text to write, whole": ("rio_writen", lambda fd, rio: (fd, "text"), WRITEN),
    "nothing to write": ("rio_writen", lambda fd, rio: (fd,), WRITEN),
    "C's two arguments": ("rio_readinitb", lambda fd, rio: (rio, fd), r"rio = {Rio}_readinitb\(fd\)"),
    "text for a descriptor": ("rio_readinitb", lambda fd, rio: ("fd",), r"rio = {Rio}_readinitb\(fd\)"),
}


@pytest.mark.parametrize("letters", ["rio", "Rio"])
@pytest.mark.parametrize(("name", "arguments", "right"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_a_type_error_that_shows_the_right_one_and_reads_nothing(pair, letters, name, arguments, right):
    ours, theirs = pair
    theirs.sendall(b"line\n")
    rio = csapp.rio_readinitb(ours)
    wrong = getattr(csapp, name.replace("rio", letters))
    with pytest.raises(TypeError, match=f"the call is .*{right.format(Rio=letters)}$"):
        wrong(*arguments(ours.fileno(), rio))
    assert csapp.rio_readlineb(rio) == b"line\n"


WRAPPERS = {
    "Accept": (lambda: csapp.Accept(0, None, None), "connfd, address = Accept(listenfd)"),
    "Bind": (lambda: csapp.Bind(0, ("", 0), 16), "Bind(fd, address)"),
    "Fgets": (lambda: csapp.Fgets(bytearray(9), 9, csapp.stdin), "buf = Fgets(MAXLINE, stdin)"),
    "Fputs": (lambda: csapp.Fputs(b"text", 1), "Fputs(buf, stdout)"),
    "Readdir": (lambda: csapp.Readdir("/"), "entry = Readdir(dirp)"),
    "Closedir": (lambda: csapp.Closedir("/"), "Closedir(dirp)"),
    "Munmap": (lambda: csapp.Munmap(bytearray(9)), "Munmap(srcp)"),
    "FD_ZERO": (lambda: csapp.FD_ZERO(0), "FD_ZERO(fds), with fds = fd_set()"),
    "FD_SET": (lambda: csapp.FD_SET(csapp.fd_set(), 1), "FD_SET(fd, fds), with fds = fd_set()"),
    "FD_ISSET": (lambda: csapp.FD_ISSET(0), "FD_ISSET(fd, fds), with fds = fd_set()"),
    "Pthread_once": (lambda: csapp.Pthread_once(0, print), "Pthread_once(routine)"),
    "Kill": (lambda: csapp.Kill("1", 15), "Kill(pid, signum)"),
    "Signal": (lambda: csapp.Signal(csapp.SIGUSR1, "handler"), "Signal(signum, handler)"),
    "Listen": (lambda: csapp.Listen("0", 5), "Listen(fd, backlog)"),
    "Stat": (lambda: csapp.Stat("name", bytearray(144)), "stat = Stat(filename)"),
    "Sleep": (lambda: csapp.Sleep("1"), "Sleep(seconds)"),
    "Getaddrinfo": (lambda: csapp.Getaddrinfo("localhost"), "addresses = Getaddrinfo(host, service, "),
    "Getnameinfo": (lambda: csapp.Getnameinfo(), "host, service = Getnameinfo(address, flags)"),
    "Open_clientfd": (lambda: csapp.Open_clientfd("localhost"), "fd = Open_clientfd(hostname, port)"),
    "Open_listenfd": (lambda: csapp.Open_listenfd(), "fd = Open_listenfd(port)"),
    "Setsockopt": (
        lambda: csapp.Setsockopt(0, csapp.SOL_SOCKET, csapp.SO_REUSEADDR, 1, 4),
        "Setsockopt(fd, level, option, value)",
    ),
    "Pthread_create": (lambda: csapp.Pthread_create(None, None, print, None), "tid = Pthread_create(routine, arg)"),
    "Pthread_join": (lambda: csapp.Pthread_join(1, None), "result = Pthread_join(tid)"),
    "Sem_init": (lambda: csapp.Sem_init(None, 0, 1), "sem = Sem_init(value)"),
    "P": (lambda: csapp.P(1), "P(sem)"),
    "Wait": (lambda: csapp.Wait(None), "pid, status = Wait()"),
    "Select": (lambda: csapp.Select(5, None), "nready = Select(n, readfds, writefds, exceptfds, timeout)"),
    "Read": (lambda: csapp.Read(0), "n = Read(fd, buf, n)"),
}


@pytest.mark.parametrize(("call", "right"), WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrong_call_of_a_wrapper_shows_the_right_one_too(call, right):
    with pytest.raises(TypeError, match=re.escape(right)):
        call()


def test_every_function_of_csapp_knows_its_right_call():
    for name in csapp.__all__:
        value = getattr(csapp, name)
        # Not the functions of the system, nor the two of rioecho.sockets.
        if callable(value) and not isinstance(value, type) and "csapp" in (getattr(value, "__module__", None) or ""):
            assert all(re.search(rf"\b{value.__name__}\(", form) for form in value.forms), name


def test_a_type_error_of_a_signal_handler_is_not_taken_for_one_of_the_call(pair, on_alarm):
    ours, _ = pair

    def handler(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        len(None)

    rio = csapp.rio_readinitb(ours)
    for function in (csapp.rio_readlineb, csapp.Rio_readlineb):
        on_alarm(handler, 0.05, interval=0.05)
        with pytest.raises(TypeError) as caught:
            function(rio)
        assert str(caught.value) == "object of type 'NoneType' has no len()"


def test_a_type_error_of_a_stream_of_the_program_is_not_taken_for_one_of_the_call():
    class Stream:
        def readline(self, limit):
            raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        csapp.Fgets(10, Stream())


def test_an_attribute_error_of_the_program_s_code_is_not_taken_for_one_of_the_call():
    with pytest.raises(AttributeError, match="nothing"):
        csapp.Pthread_once(lambda: csapp.nothing)


# The kernel's time limit


@pytest.mark.long
def test_the_kernel_s_time_limit_of_a_socket_is_that_of_the_book_s_names(function, pair, on_alarm):
    def too_late(*_):
        raise AssertionError("the call waits without limit")

    on_alarm(too_late, 1.0, interval=1.0)
    ours, theirs = pair
    ours.settimeout(None)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 100_000))
    fd = ours.fileno()
    rio = csapp.rio_readinitb(fd)
    assert isinstance(rio, Rio)
    start = time.monotonic()
    error = TimeoutError if function("rio_readn") is csapp.rio_readn else SystemExit
    for call in (lambda: function("rio_readn")(fd, 1), lambda: function("rio_readlineb")(rio)):
        with pytest.raises(error):
            call()
    assert time.monotonic() - start >= 0.2
    theirs.sendall(b"line\n")
    assert csapp.rio_readlineb(rio) == b"line\n"


def test_the_kernel_s_time_limit_of_sending_is_that_of_the_book_s_names(function, pair, on_alarm):
    def too_late(*_):
        raise AssertionError("the call waits without limit")

    on_alarm(too_late, 1.0, interval=1.0)
    ours, _ = pair
    ours.settimeout(None)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 100_000))
    with pytest.raises(TimeoutError if function("rio_writen") is csapp.rio_writen else SystemExit):
        function("rio_writen")(ours.fileno(), bytes(1 << 24))

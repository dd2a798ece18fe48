"""open_clientfd, open_listenfd and connect: real sockets on the loopback."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from rioecho.sockets import LISTENQ, connect, open_clientfd, open_listenfd
from support.peers import needs_ipv6
from support.signals import interrupted

LINUX = sys.platform.startswith("linux")
LONG = 20.0  # timeout in seconds that expires only if the test fails


@pytest.fixture(params=["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def host(request):
    return request.param


def listening(host, port=0, backlog=8):
    """Return a listening socket made with the standard library alone."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.settimeout(LONG)
    except BaseException:
        sock.close()
        raise
    return sock


@pytest.fixture
def listener(host):
    with listening(host) as sock:
        yield sock


@pytest.fixture
def closed_port(host):
    """Return a port on which no socket listens. It stays bound, so that no other process gets it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        yield sock.getsockname()[1]


@pytest.fixture
def full_listener():
    """Return a listener whose listen queue is full, so that connecting blocks until a connection is accepted."""
    with listening("127.0.0.1", backlog=0) as sock:
        queued = fill(lambda: socket.socket(), sock.getsockname())
        yield sock
        for one in queued:
            one.close()


@pytest.fixture
def full_unix_listener(tmp_path):
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(0)
        queued = fill(lambda: socket.socket(socket.AF_UNIX), path)
        yield sock
        for one in queued:
            one.close()


def fill(make, address):
    queued = []
    for _ in range(64):
        sock = make()
        sock.settimeout(0.1)
        try:
            sock.connect(address)
        except (TimeoutError, BlockingIOError):
            sock.close()
            return queued
        except OSError as exc:
            sock.close()
            pytest.skip(f"on this system clients do not wait for a full listen queue: {exc}")
        queued.append(sock)
    for sock in queued:
        sock.close()
    pytest.skip("the listen queue of this system does not fill up")


@pytest.fixture
def resolves(monkeypatch):
    """Return a function that sets the addresses that ``many.test`` and ``None`` resolve to."""
    real = socket.getaddrinfo

    def resolve(*addresses):
        def getaddrinfo(host, port, *args, **kwargs):
            if host in (None, "many.test"):
                return [real(address, port, type=socket.SOCK_STREAM)[0] for address in addresses]
            return real(host, port, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve


def is_blocking_and_close_on_exec(fd):
    assert type(fd) is int
    return os.get_blocking(fd) and bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


# open_clientfd


def test_client_descriptor_is_a_connected_blocking_close_on_exec_int(host, listener):
    fd = open_clientfd(host, listener.getsockname()[1])
    server, _ = listener.accept()
    with server:
        assert is_blocking_and_close_on_exec(fd)
        os.write(fd, b"hello")
        assert server.recv(16) == b"hello"
        os.close(fd)
        assert server.recv(16) == b""


@pytest.mark.parametrize("form", [int, str, "{:07d}".format])
def test_port_is_an_int_or_digits(host, listener, form):
    fd = open_clientfd(host, form(listener.getsockname()[1]))
    server, _ = listener.accept()
    with server:
        os.close(fd)
        assert server.recv(1) == b""


def test_port_is_the_name_of_a_service():
    try:
        number = socket.getservbyname("echo", "tcp")
    except OSError:
        pytest.skip("this system has no list of services")
    with pytest.raises(OSError, match="port echo") as by_name:
        open_clientfd("255.255.255.255", "echo")
    with pytest.raises(OSError, match=f"port {number}") as by_number:
        open_clientfd("255.255.255.255", number)
    assert by_name.value.errno == by_number.value.errno


@pytest.mark.parametrize(
    "port", [65536, 70000, 10**30, -1, "65536", "70000", "9" * 30, "-1", "+80", " 80", "80 ", "١٢", ""], ids=repr
)
def test_port_out_of_range_is_a_value_error_and_not_some_other_port(port):
    for function in (lambda: open_clientfd("127.0.0.1", port), lambda: open_listenfd(port)):
        with pytest.raises(ValueError, match="0 to 65535"):
            function()


@pytest.mark.parametrize("port", [80.0, None, True, b"80", [80]], ids=repr)
def test_port_of_a_wrong_type_is_a_type_error(port):
    for function in (lambda: open_clientfd("127.0.0.1", port), lambda: open_listenfd(port)):
        with pytest.raises(TypeError, match="a port must be an int or a str"):
            function()


@pytest.mark.parametrize("host", [None, b"localhost", 127, Path("localhost")], ids=repr)
def test_host_of_a_wrong_type_is_a_type_error(host):
    with pytest.raises(TypeError, match="a host name must be a str"):
        open_clientfd(host, 80)
    with pytest.raises(TypeError, match="a host name must be a str"):
        connect(host, 80)


def test_nul_in_host_or_port_is_rejected(listener):
    name, port = listener.getsockname()[:2]
    with pytest.raises(ValueError, match="NUL"):
        open_clientfd(f"{name}\0.example", port)
    with pytest.raises(ValueError, match="not"):
        open_clientfd(name, f"{port}\0x")


def test_refused_connection_names_host_and_port_and_keeps_class_and_errno(host, closed_port):
    with pytest.raises(ConnectionRefusedError) as caught:
        open_clientfd(host, closed_port)
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.strerror == f"cannot connect to {host} port {closed_port}: {os.strerror(errno.ECONNREFUSED)}"


@pytest.mark.parametrize("host", ["", "no host", "127.0.0.1\n"], ids=repr)
def test_name_without_an_address_is_a_gaierror_that_names_it(host):
    with pytest.raises(socket.gaierror) as caught:
        open_clientfd(host, 80)
    assert caught.value.errno == socket.EAI_NONAME
    assert caught.value.strerror.startswith(f"cannot connect to {host if host.isprintable() and host else repr(host)} ")


@pytest.mark.parametrize("host", ["..", "a" * 70 + ".x", "\udcff.example"], ids=ascii)
def test_name_that_idna_rejects_is_a_gaierror(host):
    with pytest.raises(socket.gaierror, match=r"cannot connect to .* port 80: not a host name") as caught:
        open_clientfd(host, 80)
    assert caught.value.errno == socket.EAI_NONAME


def test_unknown_service_is_a_gaierror_that_names_it():
    with pytest.raises(socket.gaierror, match=r"cannot connect to 127.0.0.1 port no-such-service: "):
        open_clientfd("127.0.0.1", "no-such-service")


@needs_ipv6
def test_every_address_of_the_name_is_tried(resolves):
    with listening("127.0.0.1") as sock:
        resolves("::1", "::1", "127.0.0.1")
        fd = open_clientfd("many.test", sock.getsockname()[1])
        server, _ = sock.accept()
        with server:
            os.close(fd)
            assert server.recv(1) == b""


def test_last_error_is_raised_when_no_address_answers(resolves, host, closed_port):
    resolves("255.255.255.255", host)
    with pytest.raises(ConnectionRefusedError, match=rf"cannot connect to many.test port {closed_port}: "):
        open_clientfd("many.test", closed_port)


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="with random source ports it takes too many attempts")
def test_connection_to_oneself_is_refused():
    # The port of a closed connection. The kernel selects each port of its range in turn as the source port, so one of
    # the attempts below connects to itself.
    with listening("127.0.0.1") as sock, socket.create_connection(sock.getsockname()) as client:
        port = client.getsockname()[1]
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(high - low):
        with pytest.raises(ConnectionRefusedError):
            open_clientfd("127.0.0.1", port)


def test_default_timeout_of_the_socket_module_has_no_effect(host, listener):
    socket.setdefaulttimeout(5)
    try:
        client = open_clientfd(host, listener.getsockname()[1])
        server = open_listenfd(0)
        rio = connect(host, listener.getsockname()[1])
    finally:
        socket.setdefaulttimeout(None)
    with rio:
        assert os.get_blocking(client)
        assert os.get_blocking(server)
        os.close(client)
        os.close(server)


@pytest.mark.long
def test_signal_handler_that_raises_while_connecting_leaks_no_descriptor(full_listener, on_alarm):
    interrupted(on_alarm, lambda: open_clientfd(*full_listener.getsockname()))


@pytest.mark.slow
def test_signal_handler_that_returns_does_not_abort_connecting(full_listener, on_alarm):
    calls = []

    def accept(*_):
        calls.append(1)
        assert len(calls) < LONG / 0.02, "the call does not return"
        if len(calls) == 3:
            full_listener.accept()[0].close()

    on_alarm(accept, 0.02, interval=0.02)
    os.close(open_clientfd(*full_listener.getsockname()))
    assert len(calls) >= 3


# open_listenfd


def accepted(fd):
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.settimeout(LONG)
        conn, address = sock.accept()
        conn.close()
        sock.setblocking(True)
        return address


def port_of(fd):
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockname()[1]


def test_listening_descriptor_is_a_blocking_close_on_exec_int(host):
    for fd in (open_listenfd(0), open_listenfd("0", host)):
        assert is_blocking_and_close_on_exec(fd)
        os.close(fd)


def test_without_a_host_one_descriptor_accepts_both_families(host):
    fd = open_listenfd(0)
    with socket.create_connection((host, port_of(fd)), timeout=LONG):
        assert accepted(fd)[0] in (host, f"::ffff:{host}")
    os.close(fd)


def test_without_ipv6_it_listens_on_ipv4(resolves):
    # The first address is reserved for documentation (RFC 3849).
    resolves("2001:db8::1", "0.0.0.0")  # noqa: S104
    fd = open_listenfd(0)
    with socket.create_connection(("127.0.0.1", port_of(fd)), timeout=LONG):
        assert accepted(fd)[0] == "127.0.0.1"
    os.close(fd)


def test_with_a_host_it_listens_only_there(host):
    fd = open_listenfd(0, host)
    port = port_of(fd)
    with socket.create_connection((host, port), timeout=LONG):
        assert accepted(fd)[0] == host
    other = "127.0.0.1" if ":" in host else "::1"
    with pytest.raises((ConnectionRefusedError, OSError)):
        socket.create_connection((other, port), timeout=LONG)
    os.close(fd)


def test_it_listens_on_the_first_available_address(resolves, host):
    resolves("203.0.113.1", host)  # the first is reserved for documentation (RFC 5737)
    fd = open_listenfd(0, "many.test")
    with socket.create_connection((host, port_of(fd)), timeout=LONG):
        assert accepted(fd)[0] == host
    os.close(fd)


def test_last_error_is_raised_when_no_address_is_available(resolves):
    resolves("198.51.100.1", "203.0.113.1")
    with pytest.raises(OSError, match=r"cannot listen on many.test port 0: ") as caught:
        open_listenfd(0, "many.test")
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_port_in_use_is_an_error_that_names_it(host):
    for name, what in ((None, ""), (host, f"{host} ")):
        fd = open_listenfd(0, name)
        port = port_of(fd)
        with pytest.raises(OSError, match=f"cannot listen on {what}port {port}: ") as caught:
            open_listenfd(port, name)
        assert caught.value.errno == errno.EADDRINUSE
        os.close(fd)


@needs_ipv6
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])  # noqa: S104
def test_port_in_use_by_only_one_family_is_an_error(wildcard):
    with listening(wildcard) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on port {port}: ") as caught:
            open_listenfd(port)
        assert caught.value.errno == errno.EADDRINUSE


@needs_ipv6
def test_name_with_one_address_in_use_is_an_error(resolves):
    with listening("127.0.0.1") as sock:
        resolves("127.0.0.1", "::1")
        with pytest.raises(OSError, match=r"cannot listen on many.test") as caught:
            open_listenfd(sock.getsockname()[1], "many.test")
        assert caught.value.errno == errno.EADDRINUSE


def test_port_is_available_at_once_after_the_server_closed_its_connections(host):
    fd = open_listenfd(0, host)
    port = port_of(fd)
    with socket.create_connection((host, port), timeout=LONG) as client:
        accepted(fd)  # the server closes first, so that its side is in TIME_WAIT
        assert client.recv(1) == b""
    os.close(fd)
    os.close(open_listenfd(port, host))


def test_backlog_is_that_of_the_book_and_can_be_set(host):
    assert LISTENQ == 1024
    fd = open_listenfd(0, host, backlog=0)
    os.close(fd)
    with pytest.raises(TypeError):
        open_listenfd(0, host, 5)
    for wrong, error in ((-1, ValueError), (2**31, ValueError), (1.5, TypeError), (None, TypeError)):
        with pytest.raises(error):
            open_listenfd(0, host, backlog=wrong)


@pytest.mark.parametrize("host", ["", "..", "no host"], ids=repr)
def test_unknown_host_to_listen_on_is_a_gaierror_that_names_it(host):
    with pytest.raises(socket.gaierror, match=r"cannot listen on .* port 0: "):
        open_listenfd(0, host)


# connect over TCP


def option(rio, level, name):
    with socket.socket(fileno=os.dup(rio.fileno())) as sock:
        return sock.getsockopt(level, name)


def test_connection_is_owned_by_its_rio(host, listener):
    rio = connect(host, str(listener.getsockname()[1]))
    server, _ = listener.accept()
    with server:
        server.sendall(b"one\ntwo\n")
        assert rio.readline() == b"one\n"
        rio.writen(b"three\n")
        assert server.recv(16) == b"three\n"
        rio.close()
        # The Rio had unread input, so the peer may receive a reset instead of EOF.
        with contextlib.suppress(ConnectionResetError):
            assert server.recv(16) == b""


def test_small_messages_are_not_delayed(host, listener):
    with connect(host, listener.getsockname()[1]) as rio:
        assert option(rio, socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("timeout", [None, 5, 0.5, 1e9, float("inf")])
def test_detached_socket_is_blocking(host, listener, timeout):
    sock, rest = connect(host, listener.getsockname()[1], timeout=timeout).detach()
    with sock:
        assert rest == b""
        assert sock.gettimeout() is None
        assert is_blocking_and_close_on_exec(sock.fileno())


@pytest.mark.long
def test_timeout_becomes_the_timeout_of_each_call_on_the_rio(host, listener):
    with connect(host, listener.getsockname()[1], timeout=0.5) as rio:
        server, _ = listener.accept()
        with server:
            server.sendall(b"half a line")
            with pytest.raises(TimeoutError):
                rio.readline()
            server.sendall(b", and the rest\n")
            assert rio.readline() == b"half a line, and the rest\n"


@pytest.mark.long
def test_connecting_takes_no_longer_than_the_timeout(full_listener):
    host, port = full_listener.getsockname()
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=f"cannot connect to {host} port {port}: timed out") as caught:
        connect(host, port, timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 10
    assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.long
def test_timeout_limits_all_addresses_together(full_listener, resolves):
    host, port = full_listener.getsockname()
    resolves(*[host] * 100)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"many.test"):
        connect("many.test", port, timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 10


def test_zero_timeout_does_not_block(full_listener):
    with pytest.raises(BlockingIOError, match=r"cannot connect to 127.0.0.1 port"):
        connect(*full_listener.getsockname(), timeout=0)


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (-0.001, ValueError), (float("nan"), ValueError), ("5", TypeError)]
)
def test_invalid_timeout_is_rejected_before_connecting(host, listener, tmp_path, timeout, error):
    with pytest.raises(error, match="timeout must be None or"):
        connect(host, listener.getsockname()[1], timeout=timeout)
    with pytest.raises(error, match="timeout must be None or"):
        connect(tmp_path / "nobody", timeout=timeout)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    "options", [{"bufsize": 0}, {"bufsize": "many"}, {"max_line": -1}, {"closefd": False}, {"closefd": True}, {"no": 1}]
)
def test_invalid_option_of_the_rio_does_not_leave_the_connection_open(host, listener, options):
    with pytest.raises((TypeError, ValueError)):
        connect(host, listener.getsockname()[1], **options)
    server, _ = listener.accept()
    with server:
        assert server.recv(1) == b""


def test_options_are_passed_to_the_rio(host, listener):
    with connect(host, listener.getsockname()[1], bufsize=2, max_line=4) as rio:
        server, _ = listener.accept()
        with server:
            server.sendall(b"more than four\n")
            with pytest.raises(ValueError, match="limit of 4 bytes"):
                rio.readline()


def test_refused_connection_is_reported_as_open_clientfd_does(host, closed_port):
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect to {host} port {closed_port}: "):
        connect(host, closed_port, timeout=LONG)


@pytest.mark.parametrize("port", [None, 70000, -1, 80.0, True, ""], ids=repr)
def test_invalid_port_does_not_make_the_host_a_path(port):
    with pytest.raises((TypeError, ValueError), match="a port must be"):
        connect("localhost", port)


@pytest.mark.long
def test_signal_handler_that_raises_in_connect_leaks_no_descriptor(full_listener, on_alarm):
    interrupted(on_alarm, lambda: connect(*full_listener.getsockname(), timeout=LONG))


# connect to a unix socket


@pytest.fixture
def unix_listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen(8)
        sock.settimeout(LONG)
        yield sock


@pytest.mark.parametrize("form", [str, os.fsencode, Path])
@pytest.mark.parametrize("timeout", [None, 0, LONG])
def test_path_is_str_bytes_or_path_like(unix_listener, form, timeout):
    with connect(form(unix_listener.getsockname()), timeout=timeout) as rio:
        server, _ = unix_listener.accept()
        with server:
            server.sendall(b"hello\n")
            assert rio.readline() == b"hello\n"
            assert rio.writen(b"world\n") == 6
            assert server.recv(16) == b"world\n"


@pytest.mark.skipif(not LINUX, reason="only Linux has abstract names")
def test_abstract_name_begins_with_a_nul():
    name = f"\0rioecho-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name)
        sock.listen()
        connect(name).close()
        with pytest.raises(ConnectionRefusedError, match="@nobody"):
            connect("\0nobody-rioecho-test")


def test_missing_path_is_a_file_not_found_error_that_names_it(tmp_path):
    path = tmp_path / "nobody"
    with pytest.raises(FileNotFoundError) as caught:
        connect(path)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.strerror == f"cannot connect to {path}: {os.strerror(errno.ENOENT)}"


def test_path_too_long_for_a_unix_socket_is_an_os_error_that_names_it(tmp_path):
    path = str(tmp_path / ("long" * 40))
    with pytest.raises(OSError, match=rf"cannot connect to {path}: .*too long") as caught:
        connect(path)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_stale_path_is_a_connection_refused_error_that_names_it(tmp_path):
    path = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with pytest.raises(ConnectionRefusedError, match=path):
        connect(path)


def test_empty_path_is_an_os_error():
    with pytest.raises(OSError, match="cannot connect to ''"):
        connect("")


def test_nul_inside_a_path_is_rejected(unix_listener):
    with pytest.raises(ValueError, match="NUL"):
        connect(unix_listener.getsockname() + "\0.other")


@pytest.mark.parametrize("path", [3, None, 1.5, ["path"]])
def test_path_of_a_wrong_type_is_a_type_error(path):
    with pytest.raises(TypeError):
        connect(path)


def test_invalid_option_does_not_leave_the_unix_connection_open(unix_listener):
    with pytest.raises(TypeError):
        connect(unix_listener.getsockname(), closefd=True)


@pytest.mark.long
def test_connecting_to_a_busy_unix_socket_takes_no_longer_than_the_timeout(full_unix_listener):
    path = full_unix_listener.getsockname()
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=f"cannot connect to {path}: timed out") as caught:
        connect(path, timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 10
    assert caught.value.errno == errno.ETIMEDOUT


def test_zero_timeout_does_not_block_on_a_busy_unix_socket(full_unix_listener):
    with pytest.raises(BlockingIOError, match="cannot connect"):
        connect(full_unix_listener.getsockname(), timeout=0)


@pytest.mark.parametrize("timeout", [None, LONG])
def test_connecting_to_a_busy_unix_socket_waits_until_it_is_accepted(full_unix_listener, timeout):
    full_unix_listener.settimeout(LONG)
    accepted = []

    def accept():
        accepted.append(True)
        full_unix_listener.accept()[0].close()

    accepting = threading.Timer(0.1, accept)
    accepting.start()
    connect(full_unix_listener.getsockname(), timeout=timeout).close()
    assert accepted
    accepting.join(LONG)


@pytest.mark.parametrize("timeout", [None, LONG])
def test_signals_do_not_make_connect_return_an_unconnected_unix_socket(full_unix_listener, on_alarm, timeout):
    calls = []

    def accept(*_):
        calls.append(1)
        assert len(calls) < LONG / 0.02, "the call does not return"
        if len(calls) == 3:
            full_unix_listener.accept()[0].close()

    on_alarm(accept, 0.02, interval=0.02)
    with connect(full_unix_listener.getsockname(), timeout=timeout) as rio:
        assert len(calls) >= 3
        assert rio.writen(b"connected\n") == 10


@pytest.mark.long
def test_signals_do_not_renew_the_timeout_for_a_busy_unix_socket(full_unix_listener, on_alarm):
    calls = []

    def count(*_):
        calls.append(1)
        assert len(calls) < LONG / 0.02, "the call does not return"

    on_alarm(count, 0.02, interval=0.02)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        connect(full_unix_listener.getsockname(), timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 10


def test_signal_handler_that_raises_leaks_no_unix_socket(full_unix_listener, on_alarm):
    interrupted(on_alarm, lambda: connect(full_unix_listener.getsockname()))


# The forms of the call


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "localhost:8000", "example.org"])
def test_host_without_a_port_is_a_missing_path_whose_message_shows_the_call_with_a_port(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        connect(name)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.strerror.startswith(f"cannot connect to {name}: {os.strerror(errno.ENOENT)} (without a port ")
    assert "connect(host, port)" in caught.value.strerror


@pytest.mark.parametrize("path", ["./nobody", b"nobody", Path("nobody")], ids=repr)
def test_path_that_cannot_be_a_host_gets_no_hint_about_ports(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        connect(path)
    assert caught.value.strerror.endswith(f": {os.strerror(errno.ENOENT)}")


def test_address_is_a_tuple_as_sockets_return_it(host, listener):
    for address in (listener.getsockname(), listener.getsockname()[:2], (host, str(listener.getsockname()[1]))):
        with connect(address, timeout=LONG) as rio:
            server, _ = listener.accept()
            with server:
                rio.writen(b"hello\n")
                assert server.recv(16) == b"hello\n"


def test_scope_of_an_ipv6_address_is_kept(monkeypatch):
    asked = []

    def getaddrinfo(host, port, **_):
        asked.append((host, port))
        raise socket.gaierror(socket.EAI_NONAME, "not looked up")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for address in (("fe80::1", 80, 0, 3), ("fe80::1%eth0", 80, 0, 3), ("::1", 80, 0, 0)):
        with pytest.raises(socket.gaierror):
            connect(address)
    assert asked == [("fe80::1%3", 80), ("fe80::1%eth0", 80), ("::1", 80)]


WRONG_CALLS = {
    "a tuple and a port": lambda: connect(("localhost", 80), 80),
    "a tuple of one": lambda: connect(("localhost",)),
    "a tuple of three": lambda: connect(("localhost", 80, 0)),
    "a list": lambda: connect(["localhost", 80]),
    "None": lambda: connect(None),
    "a number": lambda: connect(8000),
}


@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_call_is_a_type_error_that_shows_the_right_ones(call):
    with pytest.raises(TypeError, match=r"connect\(host, port\), connect\(\(host, port\)\) or connect\(path\)"):
        call()


def test_port_of_a_tuple_is_checked_as_any_other():
    with pytest.raises(ValueError, match="0 to 65535"):
        connect(("localhost", 70000))
    with pytest.raises(TypeError, match="a host name must be a str"):
        connect((b"localhost", 80))


# Addresses that do not answer


@pytest.mark.slow
@needs_ipv6
def test_address_that_does_not_answer_leaves_time_for_the_next(full_listener, resolves):
    port = full_listener.getsockname()[1]
    with listening("::1", port) as answers:
        resolves("127.0.0.1", "::1")
        start = time.monotonic()
        with connect("many.test", port, timeout=2.0) as rio:
            assert 1.0 <= time.monotonic() - start < 2.0
            answers.accept()[0].close()
            assert rio.readline() == b""


@pytest.mark.long
@needs_ipv6
def test_address_that_refuses_at_once_leaves_its_share_to_the_next(full_listener, resolves):
    port = full_listener.getsockname()[1]
    resolves("::1", "127.0.0.1")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        connect("many.test", port, timeout=0.4)
    assert time.monotonic() - start >= 0.4

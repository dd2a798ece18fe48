"""A read of 0 bytes is the end of a terminal or of a FIFO only after a hang-up, or after ^D in canonical mode."""

import errno
import functools
import os
import random
import signal
import termios
import threading
import time
import tty

import pytest

from rioecho import IncompleteRead, Rio, csapp, echo

LINE = b"OK 1234\n"
READS = {
    "readline": lambda rio, **timeout: rio.readline(**timeout),
    "readline(limit)": lambda rio, **timeout: rio.readline(100, **timeout),
    "read": lambda rio, **timeout: rio.read(len(LINE), **timeout),
    "readexactly": lambda rio, **timeout: rio.readexactly(len(LINE), **timeout),
    "readuntil": lambda rio, **timeout: rio.readuntil(**timeout),
    "readlines1": lambda rio, **timeout: b"".join(rio.readlines1(**timeout)),
    "read1": lambda rio, **timeout: rio.read1(**timeout) and LINE,
    "fill": lambda rio, **timeout: rio.fill(len(LINE), **timeout) and rio.read_buffered(),
    "peek": lambda rio, **timeout: rio.peek(**timeout) and LINE,
    "readinto": lambda rio, **timeout: into(rio.readinto, **timeout),
    "readinto1": lambda rio, **timeout: into(rio.readinto1, **timeout) and LINE,
    "skipline": lambda rio, **timeout: rio.skipline(**timeout) and LINE,
}
AT_END = {
    "readline": (lambda rio: rio.readline(), b""),
    "iteration": (lambda rio: list(rio), []),
    "read": (lambda rio: rio.read(4), b""),
    "read to the end": (lambda rio: rio.read(), b""),
    "readlines": (lambda rio: rio.readlines(), []),
    "readlines1": (lambda rio: rio.readlines1(), []),
    "fill": (lambda rio: rio.fill(4), 0),
    "peek": (lambda rio: rio.peek(), b""),
    "readinto": (lambda rio: rio.readinto(bytearray(4)), 0),
    "skipline": (lambda rio: rio.skipline(), 0),
}


def into(method, **timeout):
    room = bytearray(len(LINE))
    return bytes(room[: method(room, **timeout)])


class Port:
    """A pty: ``near`` is the terminal, ``far`` the master side, which is the device or the person."""

    def __init__(self, *, vtime=0, blocking=True, canonical=False):
        self.far, self.near = os.openpty()
        if canonical:
            settings = termios.tcgetattr(self.near)
            settings[3] &= ~termios.ECHO
        else:
            tty.setraw(self.near)
            settings = termios.tcgetattr(self.near)
            settings[6][termios.VMIN] = 0
            settings[6][termios.VTIME] = vtime
        termios.tcsetattr(self.near, termios.TCSANOW, settings)
        os.set_blocking(self.near, blocking)

    def send(self, data=LINE):
        os.write(self.far, data)

    def hang_up(self):
        if self.far is not None:
            os.close(self.far)
            self.far = None


@pytest.fixture
def port():
    opened = []

    def open_port(**options):
        opened.append(Port(**options))
        return opened[-1]

    yield open_port
    for each in opened:
        each.hang_up()
        os.close(each.near)


@pytest.fixture(
    params=[(vtime, blocking) for vtime in (0, 1) for blocking in (True, False)],
    ids=lambda param: f"VTIME {param[0]}, {'blocking' if param[1] else 'not blocking'}",
)
def serial(request, port):
    """Return a terminal with VMIN=0, as every serial port has it that pyserial opens."""
    vtime, blocking = request.param
    return port(vtime=vtime, blocking=blocking)


@pytest.mark.parametrize("method", READS)
def test_no_data_is_not_the_end_with_any_time_limit(serial, method, on_alarm):
    read = READS[method]
    rio = Rio(serial.near)
    for seconds, error in ((0, BlockingIOError), (0.02, TimeoutError)):
        with pytest.raises(error):
            read(rio, timeout=seconds)
    for timeout in ({"timeout": 20}, {}):
        on_alarm(lambda *_: serial.send(), 0.01)
        assert read(rio, **timeout) == LINE
        rio.read_buffered()


@pytest.mark.parametrize("bufsize", [1, 65536])
def test_a_line_that_arrives_in_parts_is_whole_and_iteration_goes_on(serial, bufsize, on_alarm):
    rio = Rio(serial.near, bufsize=bufsize)
    parts = [b"one\ntw", b"o\n", b"thr", b"ee\n"]
    on_alarm(lambda *_: parts and serial.send(parts.pop(0)), 0.01, 0.01)
    assert [next(rio) for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]
    signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_wait_without_data_uses_no_processor_time(serial):
    rio = Rio(serial.near)
    before = time.thread_time()
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.1)
    assert time.thread_time() - before < 0.03


def test_waiting_for_data_sends_buffered_output(serial):
    rio = Rio(serial.near, timeout=0.02)
    rio.write(b"AT\r")
    with pytest.raises(TimeoutError):
        rio.readline()
    got = b""
    while len(got) < 3:  # a blocking terminal is written byte by byte
        got += os.read(serial.far, 10)
    assert got == b"AT\r"


@pytest.mark.parametrize("method", AT_END)
def test_a_hang_up_is_the_end(serial, method):
    call, empty = AT_END[method]
    rio = Rio(serial.near, timeout=20)
    serial.hang_up()
    assert call(rio) == empty
    assert call(rio) == empty


@pytest.mark.parametrize("timeout", [None, 20])
def test_a_hang_up_ends_a_wait(serial, timeout, on_alarm):
    rio = Rio(serial.near, timeout=timeout)
    serial.send(b"rest")
    assert rio.fill(4) == 4
    on_alarm(lambda *_: serial.hang_up(), 0.01)
    with pytest.raises(IncompleteRead) as caught:
        rio.readexactly(5)
    assert caught.value.partial == b"rest"


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
@pytest.mark.parametrize("method", AT_END)
def test_control_d_in_canonical_mode_is_an_end_and_is_not_latched(port, method, blocking):
    call, empty = AT_END[method]
    terminal = port(canonical=True, blocking=blocking)
    rio = Rio(terminal.near, timeout=20)
    for _ in range(2):
        terminal.send(b"typed\n")
        assert rio.readline() == b"typed\n"
        terminal.send(b"\x04")
        assert call(rio) == empty


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
def test_what_is_typed_after_control_d_is_read_after_the_end(port, blocking):
    terminal = port(canonical=True, blocking=blocking)
    terminal.send(b"one\n\x04two\n")
    rio = Rio(terminal.near, timeout=20)
    assert [rio.readline() for _ in range(3)] == [b"one\n", b"", b"two\n"]


def test_the_book_s_names_wait_too(serial, on_alarm):
    on_alarm(lambda *_: serial.send(), 0.01)
    assert csapp.rio_readn(serial.near, 3) == LINE[:3]
    rio = csapp.rio_readinitb(serial.near)
    assert csapp.rio_readlineb(rio) == LINE[3:]
    on_alarm(lambda *_: serial.send(), 0.01)
    assert csapp.rio_readlineb(rio) == LINE


def test_an_echo_waits_and_ends_at_the_hang_up(serial, background):
    counts = []
    thread = background(lambda: counts.append(echo(serial.near, timeout=20)))
    for data in (b"one\n", b"two\n"):
        serial.send(data)
        got = b""
        while got != data:
            got += os.read(serial.far, 10)
    serial.hang_up()
    thread.join(20)
    assert counts == [8]


@pytest.mark.slow
def test_a_hundred_thousand_lines_through_pyserial_survive_interruptions(storm):
    pyserial = pytest.importorskip("serial", reason="pyserial is not installed")
    far, near = os.openpty()
    tty.setraw(far)
    lines = [b"%d %s\n" % (i, b"x" * (i % 50)) for i in range(100_000)]

    def send():
        data = memoryview(b"".join(lines))
        while data:
            data = data[os.write(far, data[:2000]) :]

    thread = threading.Thread(target=send, daemon=True)
    chance = random.Random(1)
    try:
        with pyserial.Serial(os.ttyname(near)) as serial_port:
            rio = Rio(serial_port)
            thread.start()
            storm(chance, 0.0005)
            got = []
            while len(got) < len(lines):
                timeout = chance.choice((0, 0.0002, 0.01, 20))
                call = functools.partial(chance.choice((rio.readline, rio.readlines1)), timeout=timeout)
                result, error = storm.attempt(call)
                assert not (timeout == 20 and isinstance(error, TimeoutError)), f"{len(got)} lines have arrived"
                if result is not None:
                    got += result if isinstance(result, list) else [result]
            signal.setitimer(signal.ITIMER_REAL, 0)
            thread.join(20)
            assert got == lines
    finally:
        os.close(near)
        os.close(far)


# ---- a FIFO that no one has opened for writing yet


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture(params=[True, False], ids=["blocking", "not blocking"])
def listening(request, fifo):
    """Return the descriptor of a FIFO that is opened for reading first, which needs O_NONBLOCK."""
    near = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(near, request.param)
    yield near
    os.close(near)


@pytest.mark.parametrize("timeout", [None, 20])
def test_a_fifo_waits_for_its_first_writer(fifo, listening, timeout, on_alarm):
    rio = Rio(listening)
    for seconds, error in ((0, BlockingIOError), (0.02, TimeoutError)):
        with pytest.raises(error):
            rio.readline(timeout=seconds)
    on_alarm(lambda *_: fifo.write_bytes(LINE + b"rest"), 0.01)
    assert rio.readline(timeout=timeout) == LINE
    assert rio.read(timeout=timeout) == b"rest"


def test_a_fifo_ends_when_a_writer_has_come_and_gone_without_a_word(fifo, listening, on_alarm):
    on_alarm(lambda *_: fifo.write_bytes(b""), 0.01)
    rio = Rio(listening)
    assert rio.read() == b""
    assert rio.read() == b""


def test_a_wait_for_a_writer_uses_no_processor_time(listening):
    before = time.thread_time()
    with pytest.raises(TimeoutError):
        Rio(listening).read(timeout=0.1)
    assert time.thread_time() - before < 0.03


@pytest.mark.parametrize("kind", ["/dev/null", "pipe", "empty file"])
def test_other_descriptors_end_as_before(kind, tmp_path):
    if kind == "pipe":
        near, far = os.pipe()
        os.close(far)
    else:
        near = os.open(kind if kind == "/dev/null" else tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert Rio(near).read() == b""
        assert csapp.rio_readn(near, 5) == b""
    finally:
        os.close(near)


BACKGROUND = """if True:
    import os, pty, signal
    from rioecho import Rio

    told, tell = os.pipe()
    pid, master = pty.fork()   # the child leads a session whose terminal is the pty
    if pid == 0:
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        if os.fork() == 0:
            os.setpgid(0, 0)   # in the background
            try:
                Rio(0, timeout=20).readline()
            except OSError as error:
                os.write(tell, b"%d" % error.errno)
            os._exit(0)
        os.wait()
        os._exit(0)
    os.close(tell)
    os.write(master, b"typed\\n")
    print(os.read(told, 100).decode())
    os.waitpid(pid, 0)
"""


def test_a_read_in_the_background_is_an_error_and_not_the_end_of_the_terminal(child):
    assert child(BACKGROUND) == f"{errno.EIO}\n"

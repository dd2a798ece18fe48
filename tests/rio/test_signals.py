"""SIGPIPE never reaches the process, and memory is bounded by the bytes received; each test runs a child process."""

import os
import signal
import sys
from pathlib import Path

import pytest

SIGPIPE = """if True:
    import os, signal, socket, sys, threading
    from rioecho import Rio
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    kind, blocked = sys.argv[1], sys.argv[2] == "blocked"
    if blocked:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    if kind == "pipe":
        far, near = os.pipe()
        close = lambda: os.close(far)
    else:
        near, far = socket.socketpair()
        close = far.close
    rio = Rio(near, bufsize=1000)

    def refused(call, *arguments):
        try:
            call(*arguments)
        except BrokenPipeError:
            return
        raise AssertionError(f"{call.__name__} did not raise")

    rio.write(b"held")
    close()
    refused(rio.flush)
    refused(rio.writen, b"x")
    refused(rio.write, b"x" * 5000)
    refused(rio.writelines, [b"x" * 5000])
    if kind != "pipe":
        assert rio.readline(timeout=5) == b""   # EOF
    thread = threading.Thread(target=refused, args=(rio.writen, b"x"))
    thread.start()
    thread.join()
    refused(rio.close)
    assert signal.SIGPIPE not in signal.sigpending()
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL
    assert (signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, [])) == blocked
    print("alive")
"""


@pytest.mark.parametrize("mask", ["open", "blocked"])
@pytest.mark.parametrize("kind", ["pipe", "socketpair"])
def test_no_sigpipe_reaches_the_process(child, kind, mask):
    assert child(SIGPIPE, kind, mask) == "alive\n"


def test_no_sigpipe_reaches_the_process_from_a_send_written_in_python(child):
    code = """if True:
        import signal, socket
        from rioecho import Rio

        class Own(socket.socket):
            def send(self, data, *flags):
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])   # which stays blocked
                return super().send(data, *flags)

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        near, far = socket.socketpair()
        far.close()
        rio = Rio(Own(fileno=near.detach()))
        for _ in range(2):
            try:
                rio.writen(b"x")
            except BrokenPipeError:
                print(*signal.sigpending() | signal.pthread_sigmask(signal.SIG_BLOCK, []))
    """
    assert child(code) == f"{signal.SIGUSR1}\n" * 2


def test_an_earlier_sigpipe_stays_pending(child):
    code = """if True:
        import os, signal
        from rioecho import Rio
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
        signal.raise_signal(signal.SIGPIPE)
        far, near = os.pipe()
        os.close(far)
        try:
            Rio(near).writen(b"x")
        except BrokenPipeError:
            print(signal.SIGPIPE in signal.sigpending())
    """
    assert child(code) == "True\n"


def test_the_error_of_a_tied_write_raises_no_sigpipe(child):
    code = """if True:
        import signal, socket
        from rioecho import Rio
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        near, far = socket.socketpair()
        rio = Rio(near)
        far.shutdown(socket.SHUT_RD)
        rio.write(b"nobody listens")
        try:
            rio.readline(timeout=0)
        except BlockingIOError:
            far.send(b"line\\n")
            print(rio.readline())
    """
    assert child(code) == "b'line\\n'\n"


limits_memory = pytest.mark.skipif(
    os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer does not work with a memory limit"
)

HUGE = """if True:
    import os, resource, sys
    from rioecho import IncompleteRead, Rio
    near, far = os.pipe()
    os.write(far, b"short")
    os.close(far)
    rio = Rio(near, max_line=None)
    huge = min(10**12, sys.maxsize)
    with open("/proc/self/statm") as sizes:
        size = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (96 << 20), resource.RLIM_INFINITY))
    try:
        print(eval(sys.argv[1]))
    except IncompleteRead as error:
        print(error.partial, error.expected)
"""


@limits_memory
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("rio.read(huge)", "b'short'"),
        ("rio.readexactly(huge)", f"b'short' {min(10**12, sys.maxsize)}"),
        ("rio.fill(huge), rio.peek()", "(5, b'short')"),
        ("rio.readline(huge)", "b'short'"),
        ("rio.readuntil(b'x', huge)", "b'short' None"),
        ("rio.readlines(huge)", "[b'short']"),
        ("rio.read1(huge)", "b'short'"),
        ("rio.peek(huge)", "b'short'"),
    ],
    ids=lambda value: value.split("(")[0] if value.startswith("rio") else "",
)
def test_a_huge_size_allocates_little_memory(child, call, answer):
    pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("there is no /proc")
    assert child(HUGE, call) == answer + "\n"


MEMORY = """if True:
    import os, resource, socket
    from rioecho import Rio
    near, far = socket.socketpair()
    far.setblocking(False)
    rio = Rio(near, max_line=None)
    sent = bytearray()
    buffer = bytearray(1 << 26)
    with open("/proc/self/statm") as sizes:
        size = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (24 << 20), resource.RLIM_INFINITY))
    failed = False
    try:
        while len(sent) < 1 << 26:
            part = b"%09d" % len(sent) * 8000
            sent += part[: far.send(part)]
            try:
                CALL
            except BlockingIOError:
                pass
    except MemoryError:
        failed = True
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    got = rio.read_buffered()
    far.close()
    print(failed, got + rio.read() == sent, len(got) > 1 << 20)
    near.close()
"""


@limits_memory
@pytest.mark.parametrize(
    "call",
    [
        "rio.readline(timeout=0)",
        "rio.read(10**9, timeout=0)",
        "rio.read(timeout=0)",
        "rio.readexactly(10**9, timeout=0)",
        "rio.readinto(buffer, timeout=0)",
        "rio.fill(10**9, timeout=0)",
    ],
)
def test_running_out_of_memory_loses_nothing(child, call):
    pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("there is no /proc")
    assert child(MEMORY.replace("CALL", call)) == "True True True\n"

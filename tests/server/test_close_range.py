"""Children of the process engine close inherited descriptors quickly, even if close_range(2) is denied."""

import os
import platform
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="seccomp and /proc are Linux only"),
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64"),
        reason="the seccomp filter uses the common number of close_range",
    ),
]

SERVE = """if True:
    import contextlib, ctypes, fcntl, os, resource, socket, struct, sys, time
    from rioecho import EchoServer

    denied, hidden = "denied" in sys.argv, "hidden" in sys.argv

    def deny_close_range():
        # Load the number of the system call; return EPERM if it is close_range, otherwise allow it.
        program = b"".join(
            struct.pack("HBBI", *instruction)
            for instruction in [(0x20, 0, 0, 0), (0x15, 0, 1, 436), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
        )
        code = ctypes.create_string_buffer(program, len(program))
        argument = ctypes.create_string_buffer(struct.pack("HP", 4, ctypes.addressof(code)))
        libc = ctypes.CDLL(None, use_errno=True)
        no_new_privs, set_seccomp, filter_mode = 38, 22, 2
        if libc.prctl(no_new_privs, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, argument, 0, 0):
            sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")
        assert libc.close_range(100_000, 100_001, 0) == -1

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # root may raise the limit to the kernel's maximum
        hard = int(open("/proc/sys/fs/nr_open").read())
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))

    # A child that closes all inherited descriptors closes these, and the other ends are at EOF.
    ends = [socket.socketpair() for _ in range(3)]
    ends.append(socket.socketpair())
    high = fcntl.fcntl(ends[-1][0].fileno(), fcntl.F_DUPFD, min(soft, 1 << 20) - 10)
    ends[-1][0].close()

    if denied:
        deny_close_range()   # to this thread, and to those that it starts: the engine's
    with EchoServer(engine="process") as server:
        if hidden:
            os.chroot(os.getcwd())
        start = time.monotonic()
        with socket.create_connection(server.addresses[0], timeout=60) as client:
            client.sendall(b"hello\\n")
            assert client.recv(100) == b"hello\\n"
            took = time.monotonic() - start
            for near, far in ends[:-1]:
                near.close()
                far.settimeout(60)
                assert far.recv(1) == b"", "the child still has it open"
            os.close(high)
            ends[-1][1].settimeout(60)
            assert ends[-1][1].recv(1) == b"", "the child still has the high one open"
    assert took < 20, took
    for _, far in ends:
        far.close()
    print("closed")
"""


@pytest.mark.parametrize("how", [[], ["denied"], ["denied", "hidden"]], ids=["allowed", "denied", "without /proc"])
def test_a_child_closes_all_descriptors_but_its_own_at_the_highest_limit(child, how, tmp_path, monkeypatch):
    if "hidden" in how and os.geteuid() != 0:
        pytest.skip("only root can hide /proc")
    if "hidden" in how and os.environ.get("RIOECHO_BUILD") == "sanitize":
        pytest.skip("LeakSanitizer does not end without /proc")
    monkeypatch.chdir(tmp_path)
    assert child(SERVE, *how) == "closed\n"

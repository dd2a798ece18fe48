"""No operation leaks memory or descriptors, whether it succeeds or fails; each runs many times in a child process."""

import os

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory; it finds leaks itself"
)

COUNT = """if True:
    import gc, os, signal, socket, sys, tracemalloc
    from rioecho import IncompleteRead, LineTooLong, Rio

    near, far = socket.socketpair()
    far.setblocking(False)
    rio = Rio(near, bufsize=64, max_line=1000, timeout=0)

    def fails(error, call, *arguments):
        try:
            call(*arguments)
        except error:
            return
        raise AssertionError("did not raise")

    def drain():
        try:
            while far.recv(1 << 16):
                pass
        except BlockingIOError:
            pass

    def empty():
        # discard everything that has been received
        while True:
            rio.read_buffered()
            try:
                rio.fill()
            except BlockingIOError:
                return

    def ring(signum, frame):
        if rio.timeout:
            rio.timeout = 0
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise ZeroDivisionError

    def interrupted():
        rio.timeout = 5
        signal.setitimer(signal.ITIMER_REAL, 3e-4, 3e-4)
        rio.readline()

    signal.signal(signal.SIGALRM, ring)

    def once():
        BODY

    def resident():
        with open("/proc/self/statm") as sizes:
            return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors():
        return len(os.listdir("/dev/fd"))

    def many(n):
        for _ in range(n):
            once()
        gc.collect()

    many(200)
    before = descriptors()
    references = getattr(sys, "gettotalrefcount", int)()
    tracemalloc.start()
    many(200)
    sizes = []
    for _ in range(3):
        many(500)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # A cache of the interpreter grows once, a leak every time.
    traced = min(sizes[1] - sizes[0], sizes[2] - sizes[1])
    assert traced < 2000, f"at least {traced} bytes of Python memory for 500 calls"
    references = getattr(sys, "gettotalrefcount", int)() - references
    assert references < 300, f"{references} references for 1700 calls"
    assert descriptors() == before, "descriptors"
    if os.path.exists("/proc/self/statm"):
        sizes = []
        for _ in range(6):
            many(1000)
            sizes.append(resident())
        # The allocator's memory fluctuates; a leak grows every time.
        size = min(sizes[i + 1] - sizes[i] for i in range(5))
        assert size < 100_000, f"at least {size} bytes for 1000 calls"   # a leak of 100 bytes per call
    near.close()
    far.close()
    print("clean")
"""

OPERATIONS = {
    "lines": "far.send(b'one\\n' * 9); rio.readline(); next(rio); rio.readlines1(); rio.read_buffered()",
    "bytes": "far.send(b'x' * 500); rio.read(10); rio.read(100); rio.readexactly(5); rio.peek(); rio.fill(70); "
    "rio.readinto(bytearray(200)); rio.readinto1(bytearray(4)); rio.read1(); empty()",
    "a long line": "far.send(b'x' * 900 + b'\\n'); rio.readline()",
    "a separator": "far.send(b'one\\r\\n'); rio.readuntil(b'\\r\\n')",
    "a line in pieces": "far.send(b'x' * 99 + b'\\n'); rio.readline(9); rio.skipline()",
    "a timeout": "far.send(b'x'); fails(BlockingIOError, rio.readline); fails(BlockingIOError, rio.readlines); "
    "fails(BlockingIOError, rio.read, 2000); rio.read_buffered()",
    "a line that is too long": "far.send(b'x' * 1500); fails(LineTooLong, rio.readline); "
    "fails(LineTooLong, rio.readuntil, b'\\r\\n'); fails(LineTooLong, rio.readlines); empty()",
    "invalid arguments": "fails(TypeError, rio.read, 1.5); fails(ValueError, rio.fill, -1); "
    "fails(TypeError, rio.write, 'x'); "
    "fails(TypeError, rio.readinto, b'x'); fails(ValueError, rio.readuntil, b'')",
    "EOF": "a, b = socket.socketpair(); b.send(b'xy'); b.close(); r = Rio(a); "
    "fails(IncompleteRead, r.readexactly, 3); "
    "r.read(); r.readlines(); r.read(100_000); a.close()",
    "writing": "rio.write(b'x'); rio.writelines([b'y', b'z' * 100]); rio.flush(); rio.writen(b'w' * 1000); drain()",
    "a full pipe": "fails(BlockingIOError, rio.writen, bytes(1 << 20)); "
    "fails(BlockingIOError, rio.write, bytes(1 << 20)); "
    "drain(); rio.flush(); drain()",
    "a broken pipe": "a, b = socket.socketpair(); b.close(); r = Rio(a); r.write(b'x'); "
    "fails(BrokenPipeError, r.flush); "
    "fails(BrokenPipeError, r.writen, b'x'); fails(BrokenPipeError, r.close); a.close()",
    "opening and closing": "Rio(near).close(); Rio(os.dup(near.fileno()), closefd=True).close(); Rio(near).detach()",
    "an invalid descriptor": "fails(ValueError, Rio, -1); fails(TypeError, Rio, None); fails(OSError, Rio, 10_000)",
    "dropping with buffered bytes": "far.send(b'x\\ny'); r = Rio(near); r.write(b'z'); r.readline(); del r",
    "a cycle": "a, b = socket.socketpair(); r = Rio(a); l = [r, a]; l.append(l); b.close(); a.close(); del r, l",
    "a raising handler": "fails(ZeroDivisionError, interrupted)",
}


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_leaks_neither_memory_nor_descriptors(child, operation):
    assert child(COUNT.replace("BODY", operation)) == "clean\n"

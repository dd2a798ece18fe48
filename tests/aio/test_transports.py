"""A Rio of asyncio over transports that do what those of the loops seldom do, and the transport of pipes by itself."""

import asyncio
import contextlib
import gc
import os
import pty
import socket
import sys
import termios
import tty

import pytest

from rioecho import ConcurrentCall, LineTooLong
from rioecho.aio._descriptor import Descriptor, is_at_end
from rioecho.aio.rio import open_rio
from support.aio_wires import connected, turns, until

BIG = bytes(range(256)) * (1 << 12)  # 1 MiB, more than a pipe takes


class Direct(asyncio.Transport):
    """A transport that calls ``written(data)`` at once, in place of sending."""

    def __init__(self, written=lambda data: None, sock=None):
        super().__init__({"socket": sock})
        self.written = written
        self.aborted = False

    def write(self, data):
        self.written(data)

    def is_closing(self):
        return False

    def abort(self):
        self.aborted = True

    def get_write_buffer_size(self):
        return 0

    def set_write_buffer_limits(self, high=None, low=None):
        pass


def unconnected():
    """Return a Rio without a connection, and the protocol that a loop would call."""
    return open_rio(asyncio.get_running_loop())


# ---- calls of the protocol that come at odd times


async def test_a_connection_that_is_made_for_a_rio_that_was_dropped_is_aborted():
    rio, protocol = unconnected()
    rio.abort()
    del rio
    gc.collect()
    transport = Direct()
    protocol.connection_made(transport)
    assert transport.aborted
    assert protocol.eof_received() is False
    protocol.connection_lost(None)


async def test_a_connection_that_is_lost_before_it_is_made_is_an_error_of_each_call():
    rio, protocol = unconnected()
    protocol.connection_lost(OSError(5, "no connection"))
    assert rio.get_extra_info("peername", "none") == "none"
    with pytest.raises(OSError, match="no connection"):
        await rio.readline()
    rio.abort()


async def test_a_connection_whose_socket_was_closed_by_the_program_is_lost_with_what_came():
    sock = socket.socket()
    sock.close()
    rio, protocol = unconnected()
    protocol.connection_made(Direct(sock=sock))
    protocol.data_received(b"last\nwords")
    protocol.connection_lost(ConnectionResetError("reset"))
    assert await rio.readline() == b"last\n"
    with pytest.raises(ConnectionResetError):
        await rio.readline()
    assert rio.read_buffered() == b"words"
    rio.abort()


async def test_bytes_behind_the_end_of_the_input_wake_the_call_that_waits():
    rio, protocol = unconnected()
    protocol.connection_made(Direct())
    task = asyncio.create_task(rio.readline())
    await turns(2)
    protocol.eof_received()
    protocol.data_received(b"late")
    assert await task == b"late"
    assert await rio.readline() == b""
    rio.abort()


async def test_a_transport_that_is_lost_when_a_read_sends_output_ends_the_read():
    rio, protocol = unconnected()
    protocol.connection_made(Direct(lambda data: protocol.connection_lost(ConnectionResetError("reset"))))
    rio.write(b"question\n")
    with pytest.raises(ConnectionResetError):
        await rio.readline()
    rio.abort()


async def test_a_call_that_begins_while_a_read_sends_output_is_the_one_that_waits():
    rio, protocol = unconnected()
    begun = []

    def begin(data):
        begun.append(rio.readline())
        begun[0].send(None)

    protocol.connection_made(Direct(begin))
    rio.write(b"question\n")
    with pytest.raises(ConcurrentCall, match="readline"):
        await rio.readline()
    protocol.data_received(b"answer\n")
    with pytest.raises(StopIteration) as stop:
        begun[0].send(None)
    assert stop.value.value == b"answer\n"
    rio.abort()


async def test_a_call_by_what_runs_under_another_one_is_refused():
    async with connected(max_line=4) as (rio, far):
        far.feed(b"123456")
        await rio.fill(6)
        refused = []

        def profile(frame, event, argument):
            if event == "call" and frame.f_code is LineTooLong.__init__.__code__:
                with pytest.raises(ConcurrentCall, match="in another thread or in the event loop"):
                    rio.has_line()
                refused.append(event)

        sys.setprofile(profile)
        try:
            with pytest.raises(LineTooLong):
                await rio.readline()
        finally:
            sys.setprofile(None)
        assert refused == ["call"]
        assert rio.read_buffered() == b"123456"


# ---- the transport of pipes and terminals


class Noting(asyncio.BufferedProtocol):
    """A protocol that notes what it is told."""

    def __init__(self):
        self.room = bytearray(100)
        self.data = b""
        self.noted = []

    def get_buffer(self, sizehint):
        return self.room

    def buffer_updated(self, nbytes):
        self.data += self.room[:nbytes]

    def eof_received(self):
        self.noted.append("end")

    def pause_writing(self):
        self.noted.append("pause")

    def resume_writing(self):
        self.noted.append("resume")

    def connection_lost(self, error):
        self.noted.append("lost")


def descriptor(end, *, reads=False, writes=False, protocol=None):
    """Return the transport of a pipe's end, and its protocol."""
    protocol = protocol or Noting()
    file = os.fdopen(end, "rb" if reads else "wb", 0)
    transport = Descriptor(asyncio.get_running_loop(), file, protocol, reads=reads, writes=writes, is_terminal=False)
    transport.start()
    return transport, protocol


@pytest.fixture
def pipe():
    """Return the two ends of a pipe. The test closes them."""
    return os.pipe()


async def test_a_pipe_is_read_from_until_it_is_paused(pipe):
    transport, protocol = descriptor(pipe[0], reads=True)
    assert transport.is_reading()
    os.write(pipe[1], b"one")
    await until(lambda: protocol.data == b"one")
    transport.pause_reading()
    assert not transport.is_reading()
    os.write(pipe[1], b"two")
    await turns(5)
    assert protocol.data == b"one"
    transport.resume_reading()
    await until(lambda: protocol.data == b"onetwo")
    os.close(pipe[1])
    await until(lambda: protocol.noted == ["end"])
    assert not transport.is_reading()
    transport.resume_reading()
    assert not transport.is_reading()
    transport.close()
    await until(lambda: protocol.noted == ["end", "lost"])


async def test_a_pipe_that_is_paused_in_the_turn_in_which_bytes_come_is_not_read_from(pipe):
    transport, protocol = descriptor(pipe[0], reads=True)
    os.write(pipe[1], b"one")
    transport.pause_reading()
    transport._ready()  # as a loop may call it that had seen the bytes before
    assert protocol.data == b""
    transport.resume_reading()
    await until(lambda: protocol.data == b"one")
    transport.close()
    await until(lambda: protocol.noted == ["lost"])
    os.close(pipe[1])


async def test_what_is_written_while_a_pipe_is_full_follows_and_close_sends_it(pipe):
    transport, protocol = descriptor(pipe[1], writes=True)
    assert not transport.can_write_eof()
    transport.write(BIG)
    transport.write(b"behind it")
    assert protocol.noted == ["pause"]
    assert transport.get_write_buffer_size() > 9
    transport.close()
    assert repr(transport) == f"<pipe transport fd={pipe[1]} closing>"
    transport.write(b"after close(): ignored")
    got = b""
    os.set_blocking(pipe[0], False)
    while len(got) < len(BIG) + 9:
        with contextlib.suppress(BlockingIOError):
            got += os.read(pipe[0], 1 << 16)
        await turns()
    assert got == BIG + b"behind it"
    await until(lambda: "lost" in protocol.noted)
    assert os.read(pipe[0], 1) == b""
    os.close(pipe[0])


async def test_a_pipe_whose_descriptor_the_program_has_closed_is_given_back():
    if not hasattr(asyncio.get_running_loop(), "_selector"):
        pytest.skip("uvloop aborts the process")
    pipe = os.pipe()
    transport, protocol = descriptor(pipe[1], writes=True)
    transport._file.close()
    transport.write(b"x")
    await until(lambda: protocol.noted == ["lost"])
    os.close(pipe[0])


async def test_the_transport_of_a_pipe_that_is_dropped_warns_and_closes(pipe):
    file = os.fdopen(pipe[0], "rb", 0)
    made = Descriptor(asyncio.get_running_loop(), file, Noting(), reads=True, writes=False, is_terminal=False)
    del file
    with pytest.warns(ResourceWarning, match=rf"unclosed transport <pipe transport fd={pipe[0]}>"):  # noqa: PT031
        del made
        gc.collect()
    with pytest.raises(BrokenPipeError):
        os.write(pipe[1], b"x")
    os.close(pipe[1])


def test_a_terminal_with_vmin_0_has_ended_only_after_a_hang_up():
    master, slave = pty.openpty()
    try:
        assert is_at_end(slave)  # in canonical mode 0 bytes are the end
        tty.setraw(slave)
        settings = termios.tcgetattr(slave)
        settings[6][termios.VMIN] = 0
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        assert os.read(slave, 1) == b""
        assert not is_at_end(slave)
        os.close(master)
        master = None
        assert is_at_end(slave)
    finally:
        os.close(slave)
        if master is not None:
            os.close(master)

"""The classes of errors: their bases, attributes, messages, and that they can be copied and pickled; written()."""

import copy
import errno
import pickle
import socket

import pytest

import rioecho
from rioecho import ConcurrentCall, FrameTooLong, IncompleteRead, LineTooLong, Rio, Woken, written

ERRORS = {
    "LineTooLong": (LineTooLong(10, 12), ValueError, {"limit": 10, "buffered": 12}),
    "FrameTooLong": (FrameTooLong(10, 12), ValueError, {"limit": 10, "size": 12}),
    "IncompleteRead": (IncompleteRead(b"half", 9), EOFError, {"partial": b"half", "expected": 9}),
    "IncompleteRead of a separator": (IncompleteRead(b"half"), EOFError, {"partial": b"half", "expected": None}),
    "ConcurrentCall": (ConcurrentCall("another call is reading"), RuntimeError, {}),
    "Woken": (Woken(), InterruptedError, {"errno": errno.EINTR}),
}


@pytest.mark.parametrize(("error", "base", "attributes"), ERRORS.values(), ids=ERRORS)
def test_error_has_its_base_and_attributes_and_so_have_its_copies(error, base, attributes):
    error.more = "set by the program"
    copies = [copy.copy(error), copy.deepcopy(error)]
    copies += [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)]  # noqa: S301, data of this test
    for one in [error, *copies]:
        assert type(one) is type(error)
        assert isinstance(one, base)
        assert {name: getattr(one, name) for name in attributes} == attributes
        assert str(one) == str(error)
        assert one.more == "set by the program"


@pytest.mark.parametrize("name", [name for name in rioecho.__all__ if isinstance(getattr(rioecho, name), type)])
def test_every_public_exception_is_among_them(name):
    if issubclass(getattr(rioecho, name), Exception):
        assert name in ERRORS


def test_messages_contain_the_numbers():
    assert "limit of 10" in str(FrameTooLong(10, 12))
    assert "12 bytes" in str(FrameTooLong(10, 12))
    assert str(IncompleteRead(b"half")) == "end of input after 4 bytes; a separator expected"
    assert "wake_fd" in str(Woken())


def test_woken_is_no_other_kind_of_error():
    assert not isinstance(Woken(), (BlockingIOError, TimeoutError))


# written()


@pytest.mark.long
def test_written_continues_a_write_after_a_timeout():
    data = bytes(range(256)) * 10_000
    ours, theirs = socket.socketpair()
    with ours, theirs:
        rio = Rio(ours, timeout=0.05)
        received = b""
        rest = data
        while rest:
            try:
                rest = rest[rio.writen(rest) :]
            except TimeoutError as error:
                rest = rest[written(error) :]
            while len(received) < len(data) - len(rest):
                received += theirs.recv(1 << 20)
        assert received == data


@pytest.mark.parametrize(
    "error", [ValueError("closed"), TimeoutError(), BlockingIOError(errno.EAGAIN, "would block"), KeyboardInterrupt()]
)
def test_written_is_0_for_an_error_that_no_write_has_raised(error):
    assert written(error) == 0


def test_written_is_the_number_that_the_error_has():
    assert written(BlockingIOError(errno.EAGAIN, "would block", 7)) == 7

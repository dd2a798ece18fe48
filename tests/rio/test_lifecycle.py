"""Opening, closing, detaching and dropping a Rio: who owns the descriptor, and what happens to buffered bytes."""

import copy
import gc
import os
import pickle
import socket
import warnings
import weakref

import pytest

from rioecho import Rio


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def owner(stream):
    """Return a Rio that owns its descriptor, an int."""
    return Rio(stream.near.detach(), closefd=True, timeout=10)


def test_close_flushes_and_leaves_a_borrowed_descriptor_open(stream):
    rio = Rio(stream.near)
    rio.write(b"last words")
    assert not rio.closed
    rio.close()
    rio.close()
    assert rio.closed
    assert stream.take_exactly(10) == b"last words"
    assert is_open(stream.near.fileno())


def test_close_flushes_and_closes_an_owned_descriptor(owner, stream):
    fd = owner.fileno()
    owner.write(b"last words")
    owner.close()
    assert not is_open(fd)
    assert stream.take_exactly(10) == b"last words"
    assert stream.take() == b""


def test_an_owned_object_is_closed_by_its_own_method(stream):
    Rio(stream.near, closefd=True).close()
    assert stream.near.fileno() == -1


def test_close_closes_the_descriptor_even_if_the_flush_fails(owner, stream):
    fd = owner.fileno()
    stream.close_far()
    owner.write(b"nobody listens")
    with pytest.raises(BrokenPipeError):
        owner.close()
    assert owner.closed
    assert not is_open(fd)


def test_a_with_statement_closes(stream):
    with Rio(stream.near, closefd=True) as rio:
        assert isinstance(rio, Rio)
        rio.write(b"bye")
    assert rio.closed
    assert stream.take_exactly(3) == b"bye"
    assert stream.near.fileno() == -1


def test_a_with_statement_does_not_hide_the_error_of_its_body(stream):
    with pytest.raises(KeyError), Rio(stream.near, closefd=True):
        raise KeyError
    assert stream.near.fileno() == -1


def test_detach_flushes_and_returns_the_descriptor_as_passed_and_the_unread_bytes(stream):
    for source in (stream.near, stream.near.fileno()):
        rio = Rio(source, closefd=True, timeout=10)
        rio.write(b"bye")
        stream.feed(b"one\ntwo\nthr")
        assert rio.readline() == b"one\n"
        fd, leftover = rio.detach()
        assert fd is source
        assert leftover == b"two\nthr"
        assert rio.closed
        assert stream.take_exactly(3) == b"bye"
        rio.close()
        del rio
        gc.collect()
        assert is_open(stream.near.fileno())


def test_a_detach_whose_flush_fails_changes_nothing(stream, background):
    rio = Rio(stream.near, bufsize=1 << 20, timeout=0)
    data = b"x" * (1 << 20)
    rio.write(data[:-1])
    stream.feed(b"held\n")
    rio.peek()
    with pytest.raises(BlockingIOError):
        rio.detach()
    assert not rio.closed
    assert rio.readline() == b"held\n"
    rio.timeout = 10
    background(lambda: stream.take_exactly(len(data) - 1))
    assert rio.detach() == (stream.near, b"")


def test_an_owner_without_references_warns_and_closes_without_flushing(stream):
    fd = os.dup(stream.near.fileno())
    holder = [Rio(fd, closefd=True)]
    holder[0].write(b"unsent")
    with pytest.warns(ResourceWarning, match="unclosed"):
        holder.clear()
    assert not is_open(fd)
    assert not stream.readable()


def test_a_borrower_without_references_leaves_the_descriptor_open_without_a_warning(stream):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rio = Rio(stream.near)
        rio.write(b"sent")
        rio.flush()
        del rio
        gc.collect()
    assert is_open(stream.near.fileno())


def test_a_borrower_without_references_warns_of_unsent_output_and_closes_nothing(stream):
    rio = Rio(stream.near)
    rio.write(b"unsent")
    with pytest.warns(ResourceWarning, match=r"the unsent output of <rioecho.Rio fd=\d+> is lost"):
        del rio
    assert is_open(stream.near.fileno())


def test_a_constructor_that_raises_closes_nothing(stream):
    fd = stream.near.fileno()
    for options in ({"bufsize": -1}, {"max_line": 0}, {"timeout": -1}):
        with pytest.raises(ValueError, match=r"must"):
            Rio(fd, closefd=True, **options)
    assert is_open(fd)


def test_the_source_is_kept_alive(stream):
    rio = Rio(socket.socket(fileno=os.dup(stream.near.fileno())))
    gc.collect()
    stream.feed(b"line\n")
    assert rio.readline(timeout=10) == b"line\n"
    rio.detach()[0].close()


def test_a_closed_rio_does_not_keep_its_source_alive(stream):
    sock = socket.socket(fileno=os.dup(stream.near.fileno()))
    alive = weakref.ref(sock)
    rio = Rio(sock)
    rio.close()
    sock.close()
    del sock
    gc.collect()
    assert alive() is None


def test_a_rio_supports_weak_references_and_is_collected_in_a_cycle(stream):
    class Source:
        def fileno(self):
            return stream.near.fileno()

        def close(self):
            closed.append(True)

    closed = []
    source = Source()
    source.rio = Rio(source, closefd=True)
    alive = weakref.ref(source.rio)
    del source
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    assert alive() is None
    assert closed == [True]


@pytest.mark.parametrize(
    "use", [lambda rio: rio.readline(timeout=5), lambda rio: rio.writen(b"x")], ids=["read", "write"]
)
@pytest.mark.parametrize("reused", [False, True], ids=["closed", "number reused"])
@pytest.mark.parametrize("kind", ["socket", "file object"])
def test_a_closed_source_is_ebadf_even_if_its_number_was_reused(stream, use, reused, kind):
    source = stream.near if kind == "socket" else os.fdopen(stream.near.detach(), "r+b", buffering=0)
    rio = Rio(source)
    stream.feed(b"held\n")
    rio.peek()
    fd = source.fileno()
    source.close()
    stranger = os.pipe() if reused else ()
    try:
        if reused:
            assert fd in stranger
        assert rio.readline() == b"held\n", "a buffered line needs no descriptor"
        with pytest.raises(OSError, match=r"closed|Bad file") as caught:
            use(rio)
        assert caught.value.errno == 9
    finally:
        for end in stranger:
            os.close(end)


def test_a_source_closed_while_a_call_waits_is_ebadf(stream, on_alarm):
    rio = Rio(stream.near, timeout=10)
    on_alarm(lambda *_: stream.near.close(), 0.005)
    with pytest.raises(OSError, match="closed") as caught:
        rio.readline()
    assert caught.value.errno == 9


def test_closing_from_a_signal_handler_during_a_call_raises_and_the_call_continues(stream, on_alarm):
    rio = Rio(stream.near, timeout=10)
    met = []

    def ring(signum, frame):
        try:
            rio.close()
        except RuntimeError as error:
            met.append(error)
        stream.feed(b"line\n")

    on_alarm(ring, 0.005)
    assert rio.readline() == b"line\n"
    assert len(met) == 1


@pytest.mark.parametrize("spoil", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_rio_cannot_be_copied(stream, spoil):
    with pytest.raises(TypeError):
        spoil(Rio(stream.near))


def test_a_rio_cannot_be_subclassed():
    with pytest.raises(TypeError):
        type("Sub", (Rio,), {})


def test_predicates_and_repr_describe_the_descriptor(wire):
    socket_rio, pty_rio = Rio(wire("socketpair").near), Rio(wire("pty").near)
    assert (socket_rio.isatty(), pty_rio.isatty()) == (False, True)
    assert socket_rio.readable()
    assert socket_rio.writable()
    assert f"fd={pty_rio.fileno()}" in repr(pty_rio)
    pty_rio.close()
    assert "closed" in repr(pty_rio)

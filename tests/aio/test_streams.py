"""StreamReader of aio.streams without a connection: it does what asyncio's does, and loses nothing where that does."""

import asyncio
import gc
import inspect
import struct
import subprocess
import sys
import warnings
from collections.abc import Coroutine

import pytest

from rioecho.aio import streams
from support.properties import given, st

DATA = b"one\ntwo two\n\nfour"


# ---- the same as asyncio's


@pytest.mark.long
def test_the_module_is_an_attribute_of_the_package_at_once():
    code = "import rioecho; print(rioecho.aio.streams.StreamReader)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "StreamReader" in done.stdout


def test_the_classes_are_asyncios_and_their_names_are_those_of_asyncio_streams():
    assert issubclass(streams.StreamReader, asyncio.StreamReader)
    assert issubclass(streams.StreamReaderProtocol, asyncio.StreamReaderProtocol)
    assert issubclass(streams.StreamWriter, asyncio.StreamWriter)
    assert set(streams.__all__) == set(asyncio.streams.__all__)


async def test_nothing_is_added_behind_the_end():
    for reader in (streams.StreamReader(), asyncio.StreamReader()):
        reader.feed_data(b"ab")
        reader.feed_eof()
        with pytest.raises(AssertionError, match="feed_data after feed_eof"):
            reader.feed_data(b"c")
        assert await reader.read() == b"ab"


async def test_a_loop_that_stores_bytes_behind_the_end_is_an_error():
    reader = streams.StreamReader()
    protocol = streams.StreamReaderProtocol(reader, loop=asyncio.get_running_loop())
    reader.feed_data(b"ab")
    view = protocol.get_buffer(10)
    view[:2] = b"cd"
    protocol.eof_received()
    with pytest.raises(AssertionError, match="after feed_eof"):
        protocol.buffer_updated(2)
    del view
    assert await reader.read() == b"ab"


async def test_too_many_bytes_without_a_separator_are_an_overrun_and_are_kept():
    for reader in (streams.StreamReader(limit=4), asyncio.StreamReader(limit=4)):
        reader.feed_data(b"123456789")
        with pytest.raises(asyncio.LimitOverrunError) as caught:
            await reader.readuntil(b"ab")
        assert caught.value.consumed == 8
        reader.feed_eof()
        assert await reader.read() == b"123456789"


async def test_a_call_that_what_it_waits_for_has_ended_is_an_error():
    class Reader(streams.StreamReader):
        async def _wait_for_data(self, name):
            self.call.close()

    reader = Reader()
    reader.call = reader.readline()
    with pytest.raises(RuntimeError, match="ended while it waited"):
        await reader.call
    reader.feed_data(b"line\n")
    assert await reader.readline() == b"line\n"


async def test_the_buffer_of_a_stream_reader_shows_its_bytes():
    reader = streams.StreamReader()
    reader.feed_data(b"ab")
    assert "bytearray(b'ab')" in repr(reader._buffer)


async def test_a_stream_reader_has_no_public_name_that_asyncios_has_not():
    ours, theirs = streams.StreamReader(), asyncio.StreamReader()
    assert {name for name in dir(ours) if not name.startswith("_") and hasattr(ours, name)} == {
        name for name in dir(theirs) if not name.startswith("_")
    }
    ours.buffered = 3  # a subclass may have an attribute of a name that is not asyncio's
    assert ours.buffered == 3


SEPARATORS = [b"\n", b"\r\n", b"aba", bytearray(b"\n")]
CALLS = st.one_of(
    st.just(("readline",)),
    st.tuples(st.just("readuntil"), st.sampled_from(SEPARATORS)),
    st.tuples(st.just("read"), st.integers(-1, 12)),
    st.tuples(st.just("readexactly"), st.integers(-1, 12)),
    st.just(("at_eof",)),
    st.just(("iterate",)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.text("ab\r\n", max_size=9).map(str.encode)),
        st.tuples(st.just("call"), CALLS),
        st.just(("cancel",)),
    ),
    max_size=14,
)


async def outcome(task):
    """Return what a task that has ended gave: a result, or an exception."""
    try:
        return await task
    except (ValueError, EOFError, RuntimeError, StopAsyncIteration, asyncio.LimitOverrunError) as error:
        return (type(error), str(error), vars(error) if isinstance(error, EOFError) else None)
    except asyncio.CancelledError:
        return "cancelled"


async def call(reader, name, *arguments):
    if name == "at_eof":
        return reader.at_eof()
    if name == "iterate":
        return await anext(aiter(reader))
    return await getattr(reader, name)(*arguments)


async def over_limit(reader, limit):
    """Report whether asyncio's readline() would lose bytes now, which is where the two differ."""
    held = bytes(reader._buffer)
    line = held[: held.find(b"\n")] if b"\n" in held else held
    return len(line) > limit


@pytest.mark.long
@given(st.sampled_from([3, 8, 1000]), STEPS)
def test_a_stream_reader_gives_what_asyncios_gives_for_the_same_bytes(limit, steps):
    async def main():
        ours, theirs = (cls(limit=limit) for cls in (streams.StreamReader, asyncio.StreamReader))
        waiting = None
        for step in [*steps, ("eof",), ("call", ("read", -1))]:
            if step[0] == "feed":
                for reader in (ours, theirs):
                    reader.feed_data(step[1])
            elif step[0] == "eof":
                for reader in (ours, theirs):
                    reader.feed_eof()
            elif step[0] == "call" and waiting is None:
                by_line = step[1][0] in ("readline", "iterate")
                if by_line and await over_limit(theirs, limit):
                    continue
                waiting = [asyncio.create_task(outcome(call(reader, *step[1]))) for reader in (ours, theirs)]
                name = step[1]
            elif step[0] == "cancel" and waiting is not None:
                if name == ("read", -1):  # asyncio's loses what came
                    continue
                for task in waiting:
                    task.cancel()
            for _ in range(6):
                await asyncio.sleep(0)
            if waiting is not None and waiting[0].done() and waiting[1].done():
                mine, its = [task.result() for task in waiting]
                if isinstance(its, tuple) and its[0] is ValueError and "chunk" in its[1]:
                    assert mine == its
                    return  # asyncio's has removed what it had
                assert mine == its
                waiting = None
            if waiting is None or name != ("read", -1):  # asyncio's takes the bytes out of its buffer
                assert ours._buffer == theirs._buffer
        if waiting is not None:
            assert await waiting[0] == await waiting[1]

    asyncio.run(main())


WRONG = [
    ("readexactly", -1, ValueError),
    ("readexactly", "1", TypeError),
    ("read", "1", TypeError),
    ("read", None, TypeError),
    ("readuntil", b"", ValueError),
    ("readuntil", (), ValueError),
    ("readuntil", (b"a", b""), ValueError),
    ("readuntil", 3, TypeError),
]


@pytest.mark.parametrize(("name", "argument", "error"), WRONG, ids=map(str, WRONG))
async def test_a_wrong_argument_raises_when_the_call_is_awaited(name, argument, error):
    reader = streams.StreamReader()
    reader.feed_data(DATA)
    awaitable = getattr(reader, name)(argument)
    with pytest.raises(error):
        await awaitable
    assert reader._buffer == DATA


async def test_a_second_reader_gets_a_runtime_error_and_the_first_goes_on():
    reader = streams.StreamReader()
    first = asyncio.create_task(reader.readline())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match=r"^read\(\) called while another coroutine is already waiting"):
        await reader.read(1)
    reader.feed_data(b"line\n")
    assert await first == b"line\n"


async def test_a_call_that_was_woken_and_needs_more_is_not_overtaken_by_another():
    reader = streams.StreamReader()
    first = asyncio.create_task(reader.readuntil(b"--"))
    await asyncio.sleep(0)
    second = asyncio.create_task(reader.readuntil(b"\n"))  # runs before the first is awake
    reader.feed_data(b"a-")
    with pytest.raises(RuntimeError, match="already waiting"):
        await second
    assert not first.done()
    reader.feed_data(b"-")
    assert await first == b"a--"


async def test_a_separator_that_another_task_uses_in_between_changes_nothing():
    reader = streams.StreamReader()
    first = asyncio.create_task(reader.readuntil(b"--"))
    await asyncio.sleep(0)
    reader.feed_data(b"x\n-")
    assert await reader.readuntil(b"\n") == b"x\n"
    reader.feed_data(b"\n--")
    assert await first == b"-\n--"


async def test_a_call_that_is_never_awaited_warns_with_its_name():
    reader = streams.StreamReader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader.readline()
        gc.collect()
    assert [str(each.message) for each in caught] == ["coroutine 'StreamReader.readline' was never awaited"]


async def test_a_reader_that_nobody_else_refers_to_lives_while_a_call_waits():
    task = asyncio.create_task(streams.StreamReader().readline())
    await asyncio.sleep(0)
    gc.collect()
    reader = next(each for each in gc.get_objects() if type(each) is streams.StreamReader)
    reader.feed_data(b"x\n")
    assert await task == b"x\n"


# ---- different on purpose: over the limit


@pytest.mark.parametrize("line", [b"123456\n", b"123456"])
async def test_readline_over_the_limit_loses_nothing(line):
    reader = streams.StreamReader(limit=5)
    reader.feed_data(line + b"next\n" * line.endswith(b"\n"))
    for _ in range(2):
        with pytest.raises(ValueError, match="limit") as caught:
            await reader.readline()
        overrun = caught.value.__context__
        assert isinstance(overrun, asyncio.LimitOverrunError)
        assert overrun.consumed == 6
    assert await reader.readexactly(overrun.consumed) == b"123456"
    if line.endswith(b"\n"):
        assert await reader.readline() == b"\n"
        assert await reader.readline() == b"next\n"


async def test_readline_waits_for_a_line_of_exactly_the_limit_and_raises_for_a_byte_more():
    reader = streams.StreamReader(limit=5)
    task = asyncio.create_task(reader.readline())
    await asyncio.sleep(0)
    reader.feed_data(b"12345")
    await asyncio.sleep(0)
    assert not task.done()
    reader.feed_data(b"6")
    with pytest.raises(ValueError, match="not found"):
        await task
    assert reader._buffer == b"123456"


# ---- different on purpose: what is cancelled

METHODS = {
    "readline": lambda reader: reader.readline(),
    "readuntil": lambda reader: reader.readuntil(b"two"),
    "readuntil of several": lambda reader: reader.readuntil((b"o t", b"r")),
    "readexactly": lambda reader: reader.readexactly(9),
    "read": lambda reader: reader.read(4),
    "read to the end": lambda reader: reader.read(),
    "iteration": lambda reader: anext(aiter(reader)),
}


@pytest.mark.parametrize("turns", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
async def test_a_call_that_is_cancelled_loses_nothing_at_any_byte(method, turns):
    for cut in range(len(DATA) + 1):
        for early in range(cut + 1):
            reader = streams.StreamReader()
            reader.feed_data(DATA[:early])
            task = asyncio.ensure_future(take(METHODS[method](reader)))
            await asyncio.sleep(0)
            reader.feed_data(DATA[early:cut])
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                taken = await task
            except asyncio.CancelledError:
                taken = b""
            assert taken + bytes(reader._buffer) == DATA[:cut]
            reader.feed_data(DATA[cut:])
            reader.feed_eof()
            assert taken + await reader.read() == DATA


async def take(awaitable):
    return await awaitable


async def test_wait_for_that_is_over_in_the_middle_loses_nothing():
    reader = streams.StreamReader()
    reader.feed_data(b"begin")
    for method in METHODS.values():
        if method is not METHODS["read"]:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(method(reader), 0.001)
    assert reader._buffer == b"begin"
    reader.feed_data(b" end\n")
    assert await asyncio.wait_for(reader.readline(), 60) == b"begin end\n"


async def test_read_to_the_end_keeps_what_came_before_the_connection_was_lost():
    reader = streams.StreamReader()
    task = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    reader.feed_data(b"part")
    await asyncio.sleep(0)
    reader.set_exception(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await task
    assert reader._buffer == b"part"


async def test_a_call_that_is_closed_forgets_its_future():
    reader = streams.StreamReader()
    waiting = reader.readline()
    assert waiting.send(None) is reader._waiter
    waiting.close()
    assert reader._waiter is None
    reader.feed_data(b"x\n")
    assert await reader.readline() == b"x\n"


# ---- the transport


class Transport:
    """Counts how often a transport is paused and resumed."""

    def __init__(self):
        self.calls = []

    def pause_reading(self):
        self.calls.append("pause")

    def resume_reading(self):
        self.calls.append("resume")


async def test_a_transport_pauses_at_twice_the_limit_and_resumes_when_the_limit_is_held():
    reader, transport = streams.StreamReader(limit=10), Transport()
    reader.set_transport(transport)
    reader.feed_data(b"x" * 20)
    assert transport.calls == []
    reader.feed_data(b"x")
    assert transport.calls == ["pause"]
    assert reader._paused is True
    await reader.readexactly(10)
    assert transport.calls == ["pause"]
    await reader.readexactly(1)
    assert transport.calls == ["pause", "resume"]


async def test_a_transport_does_not_pause_while_a_call_waits_for_more():
    reader, transport = streams.StreamReader(limit=10), Transport()
    reader.set_transport(transport)
    task = asyncio.create_task(reader.readexactly(1000))
    await asyncio.sleep(0)
    for _ in range(10):
        reader.feed_data(b"x" * 100)
    assert len(await task) == 1000
    assert transport.calls == []


async def test_a_paused_transport_resumes_for_a_call_that_needs_more_than_is_held():
    reader, transport = streams.StreamReader(limit=10), Transport()
    reader.set_transport(transport)
    reader.feed_data(b"x" * 30)
    task = asyncio.create_task(reader.readexactly(31))
    await asyncio.sleep(0)
    assert transport.calls == ["pause", "resume"]
    reader.feed_data(b"y")
    assert await task == b"x" * 30 + b"y"


async def test_a_transport_that_cannot_pause_is_not_asked_again():
    class Unstoppable(Transport):
        def pause_reading(self):
            super().pause_reading()
            raise NotImplementedError

    reader, transport = streams.StreamReader(limit=1), Unstoppable()
    reader.set_transport(transport)
    reader.feed_data(b"xxx")
    reader.feed_data(b"xxx")
    assert transport.calls == ["pause"]
    assert await reader.readexactly(6) == b"xxxxxx"


async def test_the_limit_can_be_any_number():
    reader = streams.StreamReader(limit=float("inf"))
    reader.feed_data(b"x" * 200_000 + b"\n")
    assert len(await reader.readline()) == 200_001
    reader._limit = 2.5
    reader.feed_data(b"xx\nxxx\n")
    assert await reader.readline() == b"xx\n"
    with pytest.raises(ValueError, match="limit"):
        await reader.readline()


# ---- subclasses, and what clients look at


async def test_a_method_of_a_subclass_is_called_where_asyncio_calls_it():
    class Upper(streams.StreamReader):
        async def readuntil(self, separator=b"\n"):
            return (await super().readuntil(separator)).upper()

    reader = Upper(limit=8)
    reader.feed_data(b"one\ntwo\nlast")
    reader.feed_eof()
    assert await reader.readline() == b"ONE\n"
    assert [line async for line in reader] == [b"TWO\n", b"last"]
    reader = Upper(limit=2)
    reader.feed_data(b"long\n")
    with pytest.raises(ValueError, match="limit"):
        await reader.readline()
    assert reader._buffer == b"long\n"


async def test_iteration_uses_the_readline_of_a_subclass_of_a_subclass():
    class Stripping(streams.StreamReader):
        async def readline(self):
            return (await super().readline()).strip()

    class Further(Stripping):
        pass

    reader = Further()
    reader.feed_data(b"one\ntwo\n")
    reader.feed_eof()
    assert [line async for line in reader] == [b"one", b"two"]


async def test_a_subclass_can_parse_what_is_fed_and_wait_as_asyncios_methods_do():
    class Replies(streams.StreamReader):  # as clients of Redis have it
        def __init__(self, **options):
            super().__init__(**options)
            self.parsed = []

        def feed_data(self, data):
            self.parsed += data.split()
            self._wakeup_waiter()

        async def reply(self):
            while not self.parsed:
                if self._eof:
                    raise EOFError
                await self._wait_for_data("reply")
            return self.parsed.pop(0)

    reader = Replies()
    task = asyncio.create_task(reader.reply())
    await asyncio.sleep(0)
    reader.feed_data(b"one two")
    assert [await task, await reader.reply()] == [b"one", b"two"]
    task = asyncio.create_task(reader.reply())
    await asyncio.sleep(0)
    reader.feed_eof()
    with pytest.raises(EOFError):
        await task


async def test_a_subclass_can_wait_in_its_own_way():
    class Noting(streams.StreamReader):
        waits = ()

        async def _wait_for_data(self, func_name):
            self.waits += (func_name,)
            await super()._wait_for_data(func_name)

    reader = Noting()
    task = asyncio.create_task(reader.readexactly(4))
    for _ in range(4):
        await asyncio.sleep(0)
        reader.feed_data(b"x")
    assert await task == b"xxxx"
    assert set(reader.waits) == {"readexactly"}
    task = asyncio.create_task(reader.readline())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reader.feed_data(b"\n")
    assert await reader.readline() == b"\n"


@pytest.mark.parametrize("method", ["readline", "readuntil", "readexactly", "read", "read to the end"])
async def test_the_code_of_asyncios_own_methods_works_on_a_stream_reader(method):
    """As that of a subclass that has copied it."""
    name, arguments = {"readexactly": ("readexactly", [9]), "read": ("read", [4])}.get(method, (method.split()[0], []))
    reader, transport = streams.StreamReader(limit=8), Transport()
    reader.set_transport(transport)
    task = asyncio.create_task(getattr(asyncio.StreamReader, name)(reader, *arguments))
    await asyncio.sleep(0)
    reader.feed_data(DATA + DATA)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reader.feed_eof()
    got = await task
    assert got == (DATA + DATA)[: {"readexactly": 9, "read to the end": None}.get(method, 4)]
    assert got + await reader.read() == DATA + DATA
    assert transport.calls in ([], ["pause", "resume"])  # those that call others wait in ours
    assert not reader._paused


async def test_a_call_is_a_coroutine_that_is_not_native():
    reader = streams.StreamReader()
    reader.feed_data(b"line\n")
    call = reader.readline()
    assert isinstance(call, Coroutine)
    assert inspect.isawaitable(call)
    assert not inspect.iscoroutine(call)
    assert not inspect.iscoroutinefunction(reader.readline)
    reader.feed_eof()
    assert await asyncio.gather(call, reader.read()) == [b"line\n", b""]


async def test_a_task_of_a_call_shows_its_name():
    task = asyncio.create_task(streams.StreamReader().readline())
    await asyncio.sleep(0)
    assert "StreamReader.readline" in repr(task)
    assert asyncio.iscoroutine(task.get_coro())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


CHANGES = {
    "del [:n]": lambda b: b.__delitem__(slice(None, 3)),
    "del [0:0]": lambda b: b.__delitem__(slice(0, 0)),
    "del [:-n]": lambda b: b.__delitem__(slice(None, -3)),
    "del [:too many]": lambda b: b.__delitem__(slice(None, 300)),
    "del [n:]": lambda b: b.__delitem__(slice(3, None)),
    "del [::2]": lambda b: b.__delitem__(slice(None, None, 2)),
    "del [n]": lambda b: b.__delitem__(2),
    "[n] =": lambda b: b.__setitem__(2, 65),
    "[:n] =": lambda b: b.__setitem__(slice(0, 2), b"longer"),
    "extend": lambda b: b.extend(b"more"),
    "extend by numbers": lambda b: b.extend([65, 66]),
    "+=": lambda b: b.__iadd__(memoryview(b"more")),
    "append": lambda b: b.append(10),
    "insert": lambda b: b.insert(1, 10),
    "pop": lambda b: b.pop(),
    "remove": lambda b: b.remove(10),
    "reverse": lambda b: b.reverse(),
    "clear": lambda b: b.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_of_the_buffer_is_that_of_a_bytearray(change):
    reader, expected = streams.StreamReader(), bytearray(DATA)
    reader.feed_data(b"before" + DATA)
    await reader.readexactly(6)
    buffer = reader._buffer
    ours, theirs = CHANGES[change](buffer), CHANGES[change](expected)
    assert bytes(buffer) == bytes(reader._buffer) == bytes(expected)
    assert (ours is buffer) == (theirs is expected)
    if theirs is not expected:
        assert ours == theirs
    reader.feed_eof()
    assert await reader.read() == expected


async def test_the_buffer_can_be_looked_at_as_a_bytearray_can():
    reader = streams.StreamReader()
    assert not reader._buffer
    reader.feed_data(DATA)
    buffer = reader._buffer
    assert (len(buffer), buffer[0], buffer[1:3], list(buffer)[:2]) == (len(DATA), DATA[0], DATA[1:3], list(DATA[:2]))
    assert (buffer.find(b"two"), buffer.startswith(b"two", 4), b"two" in buffer) == (4, True, True)
    assert (b">" + buffer, buffer + b"<") == (b">" + DATA, DATA + b"<")
    assert not isinstance(buffer, bytearray)
    assert buffer == DATA == buffer
    assert buffer != b""
    assert struct.unpack_from("3s", buffer) == (b"one",)
    with memoryview(buffer) as view:
        await reader.readline()
        assert view == DATA  # the view is of the bytes as they were
    assert buffer == DATA[4:]
    reader._buffer += b"!"
    assert buffer == DATA[4:] + b"!"
    reader._buffer = bytearray(b"other\n")
    assert await reader.readline() == b"other\n"
    with pytest.raises(AttributeError):
        buffer.no_such_method()

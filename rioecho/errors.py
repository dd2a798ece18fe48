"""The few errors that errno cannot say. Everything else is the OSError family.

Each error leaves every byte where its docstring says, and the object that raised it goes on working.
"""


class LineTooLong(ValueError):
    """A line or a frame is longer than the limit. Nothing was consumed: its bytes are still held.

    Go on with ``skipline()`` (throw the line away), with ``readline(limit)`` (take it in pieces), or take
    what is held with ``read_buffered()``.
    """

    def __init__(self, limit: int, buffered: int) -> None:
        super().__init__(limit, buffered)
        #: The limit in force, in bytes, the separator included.
        self.limit = limit
        #: How many bytes were held when the limit was met; all of them still are.
        self.buffered = buffered

    def __str__(self) -> str:
        return (
            f"no separator within the limit of {self.limit} bytes; the {self.buffered} bytes held are kept: "
            "go on with skipline(), readline(limit) or read_buffered()"
        )


class IncompleteRead(EOFError):
    """The end of the input came inside a frame. The bytes that did come are in ``partial``."""

    def __init__(self, partial: bytes, expected: int | None) -> None:
        super().__init__(partial, expected)
        #: What came before the end; it has been taken out of the buffer.
        self.partial = partial
        #: How many bytes were asked for; None where a separator was.
        self.expected = expected

    def __str__(self) -> str:
        wanted = "a separator" if self.expected is None else f"{self.expected} bytes"
        return f"end of input after {len(self.partial)} bytes; {wanted} expected"


class ConcurrentCall(RuntimeError):
    """Another call of the same side (reading or writing) is under way, in another thread or under this signal handler.

    The call that was under way is not disturbed, and this one did nothing.
    """

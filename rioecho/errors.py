"""The errors of this package, and written(), which reads the progress of a failed write from any of them.

All other errors are OSError and its subclasses. No error loses data: the docstring says where the bytes are. The object
that raised the error stays usable.
"""

import errno


class LineTooLong(ValueError):
    """No newline or separator was found within the limit. Nothing was consumed: the bytes are still in the buffer.

    To continue, call ``skipline()`` to discard the line, ``readline(limit)`` to read it in pieces, or
    ``read_buffered()`` to read what the buffer holds.
    """

    def __init__(self, limit: int, buffered: int) -> None:
        super().__init__(limit, buffered)
        #: The limit in bytes, including the separator.
        self.limit = limit
        #: The number of bytes in the buffer when the limit was reached. They are still there.
        self.buffered = buffered

    def __str__(self) -> str:
        return (
            f"no separator within the limit of {self.limit} bytes; the {self.buffered} bytes held are kept: "
            "go on with skipline(), readline(limit) or read_buffered()"
        )


class FrameTooLong(ValueError):
    """A frame announces a payload that is longer than the limit. Nothing was consumed: its bytes are in the buffer.

    To continue, call ``readframe()`` with a larger limit, or ``skip()`` the length and the payload.
    """

    def __init__(self, limit: int, size: int) -> None:
        super().__init__(limit, size)
        #: The limit in bytes.
        self.limit = limit
        #: The length of the payload in bytes.
        self.size = size

    def __str__(self) -> str:
        return (
            f"a frame of {self.size} bytes exceeds the limit of {self.limit}; its bytes are kept: "
            "go on with readframe(limit=...) or skip()"
        )


class IncompleteRead(EOFError):
    """The input ended before the requested bytes were complete. ``partial`` holds those that were received."""

    def __init__(self, partial: bytes, expected: int | None = None) -> None:
        super().__init__(partial, expected)
        #: The bytes received before the end of the input. They have been removed from the buffer.
        self.partial = partial
        #: The number of bytes requested, or None if the call was to read through a separator.
        self.expected = expected

    def __str__(self) -> str:
        wanted = "a separator" if self.expected is None else f"{self.expected} bytes"
        return f"end of input after {len(self.partial)} bytes; {wanted} expected"


class ConcurrentCall(RuntimeError):
    """Another call on the same side (reading or writing) is in progress.

    It runs in another thread, or it was interrupted by the signal handler that makes this call. The call in progress is
    not affected; the refused call has no effect.
    """


class Woken(InterruptedError):
    """The call would have had to wait, and the descriptor ``wake_fd`` of the Rio is readable. Nothing was lost."""

    def __init__(self, number: int = errno.EINTR, message: str = "woken: wake_fd is readable") -> None:
        super().__init__(number, message)


def written(error: BaseException) -> int:
    """Return the number of bytes that a failed ``writen()`` sent, or that a failed ``write()`` sent or buffered.

    The rest is still the caller's, so that ``rio.writen(data[written(error):])`` continues. For a text file the number
    counts characters. This is the attribute ``characters_written`` of the exception; an exception without it, which no
    write has raised, gives 0. The ``TimeoutError`` of ``asyncio.timeout()`` and ``asyncio.wait_for()`` is raised from
    the cancellation of the write, which has it.
    """
    cause: BaseException | None = error
    while cause is not None:
        count = getattr(cause, "characters_written", None)
        if isinstance(count, int):
            return count
        cause = cause.__cause__
    return 0

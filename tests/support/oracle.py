"""A reference implementation of the reader in simple Python, which knows the whole input in advance."""


class WouldWait(Exception):
    """The result depends on further input."""


class TooLong(Exception):
    """The frame is longer than the limit."""


class Incomplete(Exception):
    """The input ends inside the frame."""


class Oracle:
    """A reader of ``data``. With ``ended=False``, more input may follow."""

    def __init__(self, data=b"", *, ended=True, max_line=1 << 20):
        self.data = data
        self.ended = ended
        self.max_line = max_line
        self.kept = b""  # what was read since the outermost block of frame() began
        self.blocks = []  # for each open block, the length of ``kept`` at its beginning

    def take(self, n):
        taken, self.data = self.data[:n], self.data[n:]
        if self.blocks:
            self.kept += taken
        return taken

    def begin(self):
        """Enter a block of frame()."""
        self.blocks.append(len(self.kept))

    def leave(self, depth, undo):
        """Leave the blocks inside the outermost ``depth`` ones; with ``undo``, what was read in them is held again."""
        before = self.blocks[depth]
        del self.blocks[depth:]
        if undo:
            self.data = self.kept[before:] + self.data
            self.kept = self.kept[:before]
        if not self.blocks:
            self.kept = b""

    def or_wait(self, ready):
        if not ready and not self.ended:
            raise WouldWait

    def readline(self, limit=-1):
        max_size = self.max_line if limit < 0 else limit
        end = self.data.find(b"\n", 0, max_size) + 1
        if not end and len(self.data) > max_size and limit < 0:
            raise TooLong
        self.or_wait(end or 0 <= limit <= len(self.data))
        return self.take(end or max_size)

    def readuntil(self, sep=b"\n", limit=-1):
        max_size = self.max_line if limit < 0 else limit
        window = self.data[:max_size]
        ends = [window.find(each) + len(each) for each in (sep if isinstance(sep, tuple) else (sep,)) if each in window]
        if ends:
            return self.take(min(ends))
        if len(self.data) > max_size:
            raise TooLong
        self.or_wait(False)
        raise Incomplete(self.take(len(self.data)))

    def readframe(self, width, byteorder):
        size = int.from_bytes(self.data[:width], byteorder)
        whole = len(self.data) >= width
        if whole and size > self.max_line:
            raise TooLong
        if whole and len(self.data) >= width + size:
            return self.take(width + size)[width:]
        self.or_wait(False)
        if self.data:
            raise Incomplete(self.take(len(self.data)))
        return None

    def skip(self, n):
        self.or_wait(n <= len(self.data))
        return len(self.take(n))

    def unread(self, data):
        read = self.kept[self.blocks[-1] :] if self.blocks else b""
        if data and read.endswith(data):
            self.kept = self.kept[: -len(data)]
        self.data = data + self.data
        return len(data)

    def read(self, n=-1):
        self.or_wait(0 <= n <= len(self.data))
        return self.take(n if n >= 0 else len(self.data))

    def readexactly(self, n):
        data = self.read(n)
        if len(data) < n:
            raise Incomplete(data)
        return data

    def readlines(self, hint=-1):
        before, lines, size = (self.data, self.kept), [], 0
        try:
            while hint <= 0 or size <= hint:
                line = self.readline()
                if not line:
                    break
                lines.append(line)
                size += len(line)
        except (WouldWait, TooLong):
            self.data, self.kept = before
            raise
        return lines

    def skipline(self):
        end = self.data.find(b"\n") + 1
        self.or_wait(end)
        return len(self.take(end or len(self.data)))


class Starved(Oracle):
    """An oracle for a Feed: a block in which a read had to wait is undone however it ends."""

    def __init__(self, **options):
        super().__init__(**options)
        self.starved = []

    def begin(self):
        super().begin()
        self.starved.append(False)

    def leave(self, depth, undo):
        super().leave(depth, undo or self.starved[depth])
        del self.starved[depth:]

    def none(self, call):
        """Check a call for which bytes are missing."""
        assert call() is None
        self.starved = [True] * len(self.starved)

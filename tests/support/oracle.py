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

    def take(self, n):
        taken, self.data = self.data[:n], self.data[n:]
        return taken

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
        at = self.data.find(sep, 0, max_size)
        if at >= 0:
            return self.take(at + len(sep))
        if len(self.data) > max_size:
            raise TooLong
        self.or_wait(False)
        raise Incomplete(self.take(len(self.data)))

    def read(self, n=-1):
        self.or_wait(0 <= n <= len(self.data))
        return self.take(n if n >= 0 else len(self.data))

    def readexactly(self, n):
        data = self.read(n)
        if len(data) < n:
            raise Incomplete(data)
        return data

    def readlines(self, hint=-1):
        before, lines, size = self.data, [], 0
        try:
            while hint <= 0 or size <= hint:
                line = self.readline()
                if not line:
                    break
                lines.append(line)
                size += len(line)
        except (WouldWait, TooLong):
            self.data = before
            raise
        return lines

    def skipline(self):
        end = self.data.find(b"\n") + 1
        self.or_wait(end)
        return len(self.take(end or len(self.data)))

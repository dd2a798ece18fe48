"""The choices that a fuzz target makes, read from the bytes of its input."""


class Choices:
    """Choices made by the bytes of an input, one by each; after its end the first of the possible ones.

    So an input in which the fuzzer has changed a byte makes a similar run.
    """

    def __init__(self, data):
        self.data = data
        self.at = 0

    def __bool__(self):
        """Report whether bytes are left."""
        return self.at < len(self.data)

    def below(self, n):
        """Return a number from 0 to n - 1, n <= 256."""
        self.at += 1
        return self.data[self.at - 1] % n if self.at <= len(self.data) else 0

    def of(self, values):
        """Return one of the values."""
        return values[self.below(len(values))]

    def piece(self, n):
        """Return up to n bytes of the input as they are."""
        piece = self.data[self.at : self.at + n]
        self.at += len(piece)
        return piece

    def rest(self):
        """Return what is left of the input."""
        return self.piece(len(self.data))

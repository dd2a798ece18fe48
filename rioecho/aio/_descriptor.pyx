"""The transport of a pipe's end or a terminal: class Descriptor.

The loops' own transports for pipes copy what they read, take a terminal that has no data for one that has ended, and
have no way to read and write one descriptor. This one reads into the memory of its protocol.
"""

import asyncio
import os
import select
import termios
import warnings

from libc.errno cimport EIO, EPIPE


class Descriptor(asyncio.Transport):
    """Moves the bytes between a descriptor that is not a socket and a ``BufferedProtocol``.

    ``file`` has ``fileno()`` and ``close()``, which is called at the end.
    """

    def __init__(self, loop, file, protocol, *, reads, writes, is_terminal):
        super().__init__({"pipe": file})
        self._loop = loop
        self._file = file
        self._fd = file.fileno()
        self._protocol = protocol
        self._reads = reads
        self._writes = writes
        self._is_terminal = is_terminal
        self._unsent = b""
        self._blocking = os.get_blocking(self._fd)
        self._watched = False   # whether the loop calls _ready()
        self._ended = False     # whether the input has ended
        self._closing = False
        self._finishing = False

    def start(self):
        """Begin. On an error nothing has changed, and the descriptor is still the caller's."""
        os.set_blocking(self._fd, False)
        try:
            # A pipe's end for writing becomes readable when its last reader has gone; a terminal when somebody types.
            if self._reads or not self._is_terminal:
                self._watch()
            self._protocol.connection_made(self)
        except BaseException:
            self._unwatch()
            os.set_blocking(self._fd, self._blocking)
            self._file = None
            raise

    def __repr__(self):
        return f"<pipe transport fd={self._fd}{' closing' if self._closing else ''}>"

    def __del__(self):
        if self._file is not None:
            try:
                warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            finally:
                self._give_back()

    # ---- reading

    def _watch(self):
        if not self._watched:
            self._loop.add_reader(self._fd, self._ready)
            self._watched = True

    def _unwatch(self):
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def _ready(self):
        """Read what is there into the protocol's memory."""
        if not self._watched:
            return
        if not self._reads:
            self._unwatch()
            self._lose(BrokenPipeError(EPIPE, os.strerror(EPIPE)))
            return
        room = self._protocol.get_buffer(-1)
        try:
            n = os.readv(self._fd, [room])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if self._is_terminal and error.errno == EIO:   # hung up
                self._end()
            else:
                self._lose(error)
            return
        if n:
            self._protocol.buffer_updated(n)   # while `room` exists, its memory does not move
        elif not self._is_terminal or is_at_end(self._fd):
            self._end()

    def _end(self):
        """Note the end of the input."""
        self._unwatch()
        self._ended = True
        self._protocol.eof_received()

    def is_reading(self):
        return self._reads and self._watched

    def pause_reading(self):
        if self._reads:
            self._unwatch()

    def resume_reading(self):
        if self._reads and not self._closing and not self._ended:
            self._watch()

    # ---- writing

    def write(self, data):
        if self._closing or not data:
            return
        if self._unsent:
            self._unsent = bytes(self._unsent) + data
            return
        n = self._send(data)
        if n < len(data) and not self._closing:
            self._unsent = memoryview(data)[n:]
            self._loop.add_writer(self._fd, self._writable)
            self._protocol.pause_writing()

    def _send(self, data):
        """Return the number of bytes that the descriptor has taken; on an error the transport is lost."""
        try:
            return os.write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._lose(error)
            return 0

    def _writable(self):
        if self._unsent:
            self._unsent = self._unsent[self._send(self._unsent):]
        if self._unsent or self._finishing:
            return
        self._loop.remove_writer(self._fd)
        if self._closing:
            self._finish(None)
        else:
            self._protocol.resume_writing()

    def get_write_buffer_size(self):
        return len(self._unsent)

    def set_write_buffer_limits(self, high=None, low=None):
        """Do nothing: the marks are always 0."""

    def can_write_eof(self):
        return False

    # ---- the end

    def is_closing(self):
        return self._closing

    def close(self):
        if not self._closing:
            self._closing = True
            self._unwatch()
            if not self._unsent:
                self._finish(None)

    def abort(self):
        self._lose(None)

    def _lose(self, error):
        self._closing = True
        self._unwatch()
        if self._unsent:
            self._unsent = b""
            self._loop.remove_writer(self._fd)
        self._finish(error)

    def _finish(self, error):
        if not self._finishing:
            self._finishing = True
            self._loop.call_soon(self._finished, error)

    def _finished(self, error):
        try:
            self._protocol.connection_lost(error)
        finally:
            self._protocol = None
            self._give_back()

    def _give_back(self):
        """Close the file. Its other users, as the shell of a terminal, find it as it was."""
        file, self._file = self._file, None
        try:
            os.set_blocking(self._fd, self._blocking)
        except OSError:
            pass
        file.close()


def is_at_end(fd):
    """Report whether a terminal that has given 0 bytes has ended, by ^D or a hang-up; with VMIN 0 it has no data."""
    try:
        settings = termios.tcgetattr(fd)
    except termios.error:
        return True
    if settings[3] & termios.ICANON or settings[6][termios.VMIN] not in (0, b"\0"):
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

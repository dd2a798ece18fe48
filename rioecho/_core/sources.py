"""Which object moves the bytes of a stream that a caller passes: the object itself, or what is below its buffer.

A file object above a descriptor may hold bytes that it has read ahead, or output that it has not written. Whoever uses
the descriptor does not see them.
"""

from __future__ import annotations

import io
import os

TYPE_CHECKING = False  # importing typing is slower than importing this module
if TYPE_CHECKING:
    from typing import Any

#: Methods of objects that carry messages: multiprocessing's Connection, zmq's Socket, websocket-client's WebSocket,
#: websockets' Connection, pynng's Socket.
_OF_MESSAGES = ("recv_bytes", "recv_multipart", "recv_frame", "recv_streaming", "recv_msg")


def stream_of(source: Any) -> Any:
    """Return the object whose descriptor or methods move the bytes of ``source``, an int or an object.

    A file object with a buffer is flushed, and accepted if it then holds nothing: it cannot be read from, or it can
    tell its position, which is the descriptor's. A Rio is accepted if it holds nothing.

    Raises ``TypeError`` for an address, and for an object that carries messages, which a read would cut; ``ValueError``
    for one that may hold bytes or that changes them (a ``GzipFile``); and the errors of ``flush()``.
    """
    if isinstance(source, int):
        return source
    for name in _OF_MESSAGES:
        if hasattr(source, name):
            raise TypeError(
                f"a byte stream is required: a {type(source).__name__} carries messages, which a read would cut"
            )
    if hasattr(source, "read_buffered"):
        return _empty_rio(source)
    file = source
    if not isinstance(source, io.IOBase) and isinstance(getattr(source, "file", None), io.IOBase):
        file = source.file  # of tempfile.NamedTemporaryFile()
    while not isinstance(file, io.RawIOBase) and hasattr(file, "readline"):
        if not _holds_nothing(file):
            raise ValueError(
                f"this {type(file).__name__} may hold bytes in a buffer of its own: pass its fileno() if it does not, "
                "or open it without a buffer (open: buffering=0, Popen: bufsize=0)"
            )
        file = file.buffer if isinstance(file, io.TextIOWrapper) else file.raw
        if hasattr(file, "read_buffered"):
            return _empty_rio(file)
    if isinstance(file, (tuple, str, bytes)) and not (hasattr(file, "fileno") or hasattr(file, "recv")):
        raise TypeError(
            f"a byte stream is required, not a {type(file).__name__}: to connect use connect(host, port) or "
            "connect(path)"
        )
    return file


def timed_by(source: Any) -> Any:
    """Return the object whose timeout limits a read of ``source``: of a file of a socket, it is the socket."""
    if isinstance(source, io.TextIOWrapper):
        source = source.buffer
    if isinstance(source, (io.BufferedReader, io.BufferedWriter)):
        source = source.raw
    return getattr(source, "_sock", source) if isinstance(source, io.RawIOBase) else source  # of socket.SocketIO


def _holds_nothing(file: Any) -> bool:
    """Flush a file object and report whether it can be shown to hold no bytes above its descriptor."""
    if not isinstance(file, (io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
        return False
    if file.writable():
        file.flush()
    if not file.readable():
        return True
    try:
        return file.seekable() and file.tell() == os.lseek(file.fileno(), 0, os.SEEK_CUR)
    except OSError:  # of a text file that is being iterated over
        return False


def _empty_rio(rio: Any) -> Any:
    if rio.writable():
        rio.flush()
    if rio.buffered:
        raise ValueError(f"this Rio holds {rio.buffered} bytes that it has received: detach() returns them")
    return rio

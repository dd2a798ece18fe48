"""The book's echo() for one descriptor (CS:APP 11.4.9): what needs Python in it.

The echo itself is a loop in C (blockingloop.pxd), which returns a code. Here the GIL is taken to run signal handlers,
log a line or raise, and then the loop is called again.
"""

import sys
from io import UnsupportedOperation

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN
from libc.stdint cimport SIZE_MAX

from rioecho._core.budget cimport MemoryBudget, Share
from rioecho._core.buffer cimport buffer_held, buffer_init, buffer_start
from rioecho._core.convert cimport check_source, descriptor_of, is_tls, open_stream, os_error, to_nanoseconds, to_size
from rioecho._core.counts cimport Counts
from rioecho._core.fdio cimport fd_has_position
from rioecho._core.posix cimport (
    O_RDWR,
    RIO_FREE,
    RIO_SOURCE_UNKNOWN,
    rio_flag,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_load_relaxed,
    rio_source,
)
from rioecho._server.blockingloop cimport (
    DONE,
    FAILED,
    GOT_LINE,
    INTERRUPTED,
    NO_HEADER,
    OPENED,
    answer,
    echo_is_unused,
    echo_t,
    echo_turn,
)
from rioecho._server.echo cimport CHUNK, ECHOING, held_free
from rioecho._server.proxy cimport proxy_t

from rioecho._core.sources import stream_of
from rioecho.errors import ConcurrentCall


@cython.final
@cython.no_gc_clear   # __dealloc__ returns memory to the share
cdef class Echo:
    """The echo of one descriptor, run by ``run()``, with its counts. The caller owns the descriptor.

    ``timeout`` is the time in seconds without progress; None means no limit. A line longer than ``max_line`` bytes is
    echoed in pieces; 0 means no limit. When the descriptor ``stop_fd`` becomes readable, the echo drains: it echoes
    what has arrived, half-closes and reads to EOF, for at most ``drain_timeout`` seconds (None: no limit). ``on_line``
    is called with the length of each line before it is sent. The counts are added to ``counts``. The buffer is taken
    from the budget ``memory``.

    With ``proxied`` the connection begins with a PROXY header, which is not echoed. ``on_opened(source, first)`` is
    called when it has been read and when the first bytes to be echoed have (``first``), once if both arrive together;
    ``source`` is the address in the header, as bytes, or None. What it raises ends ``run()``.
    """

    cdef echo_t e
    cdef rio_flag running
    cdef object on_line
    cdef object on_opened
    cdef object source
    cdef proxy_t header
    cdef answer end      # the last one of echo_turn()
    cdef Counts counts
    cdef Share share

    def __cinit__(
        self,
        fd,
        framing="line",
        *,
        timeout=None,
        max_line=1 << 20,
        stop_fd=-1,
        drain_timeout=5.0,
        on_line=None,
        on_opened=None,
        bint proxied=False,
        Counts counts=None,
        MemoryBudget memory=None,
    ):
        buffer_init(&self.e.b, CHUNK)
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        stream = stream_of(fd)
        if is_tls(stream) or hasattr(stream, "read_buffered"):
            raise TypeError("echo is for raw descriptors; over TLS use a Rio: for line in rio: rio.write(line)")
        self.e.max_line = (to_size(max_line, "max_line") or SIZE_MAX) if framing == "line" else 0
        self.e.by_line = on_line is not None
        self.on_line = on_line
        self.on_opened = on_opened
        self.e.opening = proxied or on_opened is not None
        if proxied:
            self.e.header = &self.header
        self.counts = counts
        self.e.totals = &self.e.spare if counts is None else counts.c
        self.share = Share(memory, max_line)
        self.e.memory = self.share.s
        self.e.timeout = to_nanoseconds(timeout)   # with 0 the loop returns TIMED_OUT instead of waiting
        self.e.drain = to_nanoseconds(drain_timeout)
        self.e.stop_fd = stop_fd
        self.source = fd
        open_stream(descriptor_of(fd), &self.e.f)
        if self.e.f.access != O_RDWR:
            raise UnsupportedOperation("echo needs a descriptor that is open for reading and writing")
        if fd_has_position(&self.e.f):
            raise UnsupportedOperation("a file cannot be echoed: it has one position for reading and writing")

    def __dealloc__(self):
        held_free(&self.e.memory, &self.e.b)

    def run(self):
        """Echo until EOF and until all bytes are sent. Returns the number of bytes sent.

        Raises ``TimeoutError`` after ``timeout`` seconds without progress (``BlockingIOError`` for a timeout of 0),
        and the ``OSError`` of the connection, EPIPE and ECONNRESET included. Calling it again continues. Raises
        ``ConcurrentCall`` if it is running already.
        """
        if not rio_flag_take(&self.running):
            raise ConcurrentCall("this echo is running already, in another thread or under this signal handler")
        try:
            threading = sys.modules.get("threading")   # if not imported, Python knows of one thread only
            # Compare numbers, because current_thread() may have to create an object.
            self.e.main_thread = threading is None or threading.main_thread().ident == threading.get_ident()
            return self.loop()
        finally:
            rio_flag_put(&self.running, RIO_FREE)

    cdef object loop(self):
        cdef answer what
        while True:
            check_source(self.source, self.e.f.fd)   # a signal handler or on_line() may have closed it
            with nogil:
                what = echo_turn(&self.e)
            self.end = what
            if what == OPENED:
                self.open()
            elif what == NO_HEADER:
                raise ValueError("no valid PROXY header")
            elif what == DONE:
                return rio_load_relaxed(&self.e.bytes_out)
            elif what == GOT_LINE:
                self.on_line(self.e.ready)
            elif what == INTERRUPTED:
                PyErr_CheckSignals()
            elif what == FAILED:
                raise os_error(self.e.err)
            elif self.e.timeout == 0:
                raise BlockingIOError(EAGAIN, "the echo would have to wait, and its timeout is 0")
            else:
                raise TimeoutError("no progress within the timeout")

    cdef object open(self):
        """Report the PROXY header or the first bytes."""
        source = None
        if self.on_opened is None:
            return
        if self.e.header != NULL and self.header.source.kind != RIO_SOURCE_UNKNOWN:
            source = PyBytes_FromStringAndSize(<const char *>&self.header.source, sizeof(rio_source))
        self.on_opened(source, not self.e.opening)

    @property
    def is_unused(self):
        """Whether ``run()`` has ended before the first byte, by EOF or a reset: a load balancer's check."""
        return echo_is_unused(&self.e, self.end)

    @property
    def bytes_out(self):
        """The number of bytes sent."""
        return rio_load_relaxed(&self.e.bytes_out)

    @property
    def draining(self):
        """Whether the stop was requested."""
        return self.e.phase != ECHOING

    def unsent(self):
        """Return a copy of the bytes received and not yet sent. Raises ``ConcurrentCall`` while ``run()`` runs."""
        if rio_flag_state(&self.running) != RIO_FREE:
            raise ConcurrentCall("this echo is running")
        return PyBytes_FromStringAndSize(buffer_start(&self.e.b), buffer_held(&self.e.b))


def echo(fd, framing="line", *, timeout=None):
    """Send back what is received from a descriptor until EOF (the book's ``echo()``, CS:APP 11.4.9).

    ``fd`` is an int or an object with ``fileno()``, open for reading and writing; it is left open. ``framing`` is
    ``"line"``, which echoes whole lines, a line of more than 1 MiB in pieces, and an unterminated last line at EOF; or
    ``"raw"``, which echoes bytes as they arrive (RFC 862). ``timeout`` is the time in seconds without progress; None
    means no limit, and with 0 the call does not block.

    Returns the number of bytes echoed. The GIL is released while it runs; signal handlers run. Raises
    ``TimeoutError`` after the timeout (``BlockingIOError`` for 0), and the ``OSError`` of the connection,
    ``BrokenPipeError`` and ``ConnectionResetError`` included. The error's ``characters_written`` is the number of bytes
    echoed, and its ``unsent`` the bytes received and not echoed. Raises ``TypeError`` for a TLS socket, a Rio and a
    socket that carries packets, ``ValueError`` for a file object whose buffer may hold bytes, and
    ``io.UnsupportedOperation`` for a descriptor that is not open for both, or is a file.
    """
    e = Echo(fd, framing, timeout=timeout)
    try:
        return e.run()
    except BaseException as error:
        try:
            error.characters_written = e.bytes_out
            error.unsent = e.unsent()
        except (AttributeError, TypeError):
            pass   # an exception raised by a signal handler, without these attributes
        raise

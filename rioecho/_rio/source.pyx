"""What kind of thing a Rio is made for: a descriptor, or an object that moves its bytes itself."""

cimport cython

from rioecho._core.convert cimport is_tls
from rioecho._rio.channel cimport Channel
from rioecho._rio.tls cimport tls_of
from rioecho._rio.transport cimport Transport

from rioecho._core.sources import stream_of


cdef Transport transport_of(object source):
    """Return the transport that moves the bytes of ``source``; None if its descriptor is read and written.

    Raises ``TypeError`` or ``ValueError`` if the source is not a byte stream, or may hold bytes in a buffer of its own.
    """
    cdef Channel other
    source = stream_of(source)
    if isinstance(source, Channel):
        other = source
        with cython.critical_section(other):   # another thread may be closing it
            return other.transport
    return tls_of(source) if is_tls(source) else None

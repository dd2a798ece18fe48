"""What kind of thing a Rio is made for: a descriptor, or an object that moves its bytes itself."""

from rioecho._core.convert cimport is_tls
from rioecho._rio.tls cimport tls_of
from rioecho._rio.transport cimport Transport


cdef Transport transport_of(object source):
    """Return the transport that moves the bytes of ``source``; None if its descriptor is read and written."""
    return tls_of(source) if is_tls(source) else None

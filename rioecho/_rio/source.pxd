# What kind of thing a Rio is made for; see _rio/source.pyx.

from rioecho._rio.transport cimport Transport

cdef Transport transport_of(object source)
cdef Transport file_transport_of(object sock, bint reading, bint writing)

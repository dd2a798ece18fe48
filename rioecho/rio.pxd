# The book's RIO functions for Cython code outside this package, without the GIL and without Python objects.
#
#     from rioecho.rio cimport rio_t, rio_readinitb, rio_readlineb, rio_readnb, rio_readn, rio_writen
#
# The contract of each function is in _rio/capi.pxd.

from rioecho._rio.capi cimport RIO_BUFSIZE, rio_readinitb, rio_readlineb, rio_readn, rio_readnb, rio_t, rio_writen

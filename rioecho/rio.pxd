# For Cython code outside this package: the book's RIO at C level, without the GIL and without Python objects.
#
#     from rioecho.rio cimport rio_t, rio_readinitb, rio_readlineb, rio_readnb, rio_readn, rio_writen
#
# What each promises is said in _rio/capi.pxd and _rio/capi.pyx.

from rioecho._rio.capi cimport RIO_BUFSIZE, rio_readinitb, rio_readlineb, rio_readn, rio_readnb, rio_t, rio_writen

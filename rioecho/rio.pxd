# For Cython code outside this package: the book's RIO at C level, without the GIL and without Python objects.
#
#     from rioecho.rio cimport rio_t, rio_readinitb, rio_readlineb, rio_readnb, rio_readn, rio_writen
#
# What each promises is said in _csapp.pxd and _csapp.pyx.

from rioecho._csapp cimport RIO_BUFSIZE, rio_readinitb, rio_readlineb, rio_readn, rio_readnb, rio_t, rio_writen

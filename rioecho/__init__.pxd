# The C-level interface for Cython code outside this package; see rio.pxd.

from rioecho.rio cimport RIO_BUFSIZE, rio_readinitb, rio_readlineb, rio_readn, rio_readnb, rio_t, rio_writen

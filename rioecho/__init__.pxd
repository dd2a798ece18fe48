# What Cython code outside this package can cimport; see rio.pxd.

from rioecho.rio cimport RIO_BUFSIZE, rio_readinitb, rio_readlineb, rio_readn, rio_readnb, rio_t, rio_writen

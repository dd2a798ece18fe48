# cython: language_level=3, freethreading_compatible=True
"""Count the lines of a file descriptor with the book's C functions, without the GIL."""

import os

from libc.errno cimport errno
from rioecho.rio cimport rio_readinitb, rio_readlineb, rio_t


def count_lines(int fd):
    """Return the number of lines up to the end of the input; the last one may lack its newline."""
    cdef rio_t rio               # its buffer is in it: nothing is to be freed
    cdef char line[1024]
    cdef ssize_t n
    cdef long count = 0
    cdef bint inside = False     # a line of more than 1023 bytes comes in pieces
    cdef int err = 0
    with nogil:
        rio_readinitb(&rio, fd)
        while True:
            n = rio_readlineb(&rio, line, sizeof(line))
            if n <= 0:
                break
            if not inside:
                count += 1
            inside = line[n - 1] != c'\n'
        if n < 0:
            err = errno
    if err:
        raise OSError(err, os.strerror(err))
    return count

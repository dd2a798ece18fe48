"""A lock on a directory, between servers that create or remove unix sockets in it: flock(2) on the directory itself.

It is written in C so that no signal handler can run between the opening of the descriptor and its owner.
"""

import os

cimport cython
from libc.errno cimport EAGAIN, errno

from rioecho._core.convert cimport os_error
from rioecho._core.posix cimport LOCK_EX, LOCK_NB, O_CLOEXEC, O_DIRECTORY, O_RDONLY, close, flock, open


@cython.final
cdef class FolderLock:
    """A lock on a directory, released at the end of a ``with`` block or by deallocation.

    Raises ``OSError`` if the directory cannot be opened.
    """

    cdef int fd
    cdef bint begun   # an object whose arguments are refused, or whose path a handler interrupts, has no descriptor

    def __cinit__(self, folder):
        cdef bytes path = os.fsencode(folder)
        self.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        self.begun = True
        if self.fd < 0:
            raise os_error(errno)

    def __dealloc__(self):
        if self.begun:
            self.release()

    cdef void release(self) noexcept:
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()

    def take(self):
        """Try to lock the directory; report whether that succeeded. Does not block.

        Returns False if another process holds the lock. Raises ``OSError`` if the file system has no locks.
        """
        cdef int err
        if flock(self.fd, LOCK_EX | LOCK_NB) == 0:
            return True
        err = errno
        if err != EAGAIN:
            raise os_error(err)
        return False

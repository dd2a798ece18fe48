"""A lock on a folder, between servers that put a unix socket there or remove one: flock(2) on the folder itself.

It is C for the sake of its descriptor, which no signal handler can come between and its owner.
"""

import os

cimport cython
from libc.errno cimport EAGAIN, errno

from rioecho._core.convert cimport os_error
from rioecho._core.posix cimport LOCK_EX, LOCK_NB, O_CLOEXEC, O_DIRECTORY, O_RDONLY, close, flock, open


@cython.final
cdef class FolderLock:
    """A folder, open to be locked; at the end of a `with` block, or when this goes, no longer locked.

    OSError if it cannot be opened.
    """

    cdef int fd

    def __cinit__(self, folder):
        cdef bytes path = os.fsencode(folder)
        self.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if self.fd < 0:
            raise os_error(errno)

    def __dealloc__(self):
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
        """Lock it: True, or False if somebody else has locked it. OSError where nothing can be locked."""
        cdef int err
        if flock(self.fd, LOCK_EX | LOCK_NB) == 0:
            return True
        err = errno
        if err != EAGAIN:
            raise os_error(err)
        return False

"""The number of forks between the first process and this one, by which an object tells the process that made it.

Unlike getpid(), it costs no system call, and unlike a process ID it is not used again. Calls of fork() in C code count
too. A lock that stores the generation of its holder can be told from one whose holder is not in this process.
"""

from rioecho._core.posix cimport pthread_atfork


cdef void count_fork() noexcept nogil:
    global generation
    generation += 1


if pthread_atfork(NULL, NULL, count_fork):
    raise MemoryError

# How a process tells that it is a forked child; see forks.pyx.

cdef int generation   # the number of forks between the first process and this one

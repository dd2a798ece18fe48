# What a wait of the poller (_core/poller.pxd) returns: the descriptors that are ready.

cdef enum:
    READY_MAX = 256   # maximum number of descriptors returned by one call


cdef struct ready_t:
    void *data
    short events

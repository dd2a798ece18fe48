# The number of connections of each address; see _server/hosts.pyx.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from rioecho._core.posix cimport (
    RIO_SOURCE_IP,
    getpid,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
    rio_assert,
    rio_source,
)


cdef struct host_t:
    unsigned char address[16]
    uint64_t connections
    host_t *next         # in its bucket


cdef struct hosts_t:
    pthread_mutex_t lock
    host_t **buckets
    size_t size          # number of buckets, a power of two
    uint64_t limit       # maximum number of connections of an address
    uint64_t seed[2]
    int owner            # ID of the process that counts


cdef enum claim:
    CLAIM_NO_MEMORY = -1
    CLAIM_REFUSED
    CLAIM_GRANTED


cdef inline size_t hosts_bucket(const hosts_t *h, const unsigned char *address) noexcept nogil:
    """Return the number of an address's bucket. It depends on the seed, so that nobody can choose colliding addresses.
    """
    cdef uint64_t half[2]
    cdef uint64_t hash
    memcpy(half, address, sizeof(half))
    hash = (half[0] ^ h.seed[0]) * <uint64_t>0x9E3779B97F4A7C15
    hash = (hash ^ (hash >> 29) ^ half[1] ^ h.seed[1]) * <uint64_t>0xBF58476D1CE4E5B9
    hash = (hash ^ (hash >> 32)) * <uint64_t>0x94D049BB133111EB
    return <size_t>(hash >> 20) & (h.size - 1)


cdef inline claim hosts_claim(hosts_t *h, const rio_source *source, host_t **claimed) noexcept nogil:
    """Count a connection of an address, unless it has ``limit`` of them already.

    If granted, ``claimed`` is to be given to hosts_release(); it is NULL for a source without an address, which has no
    limit.
    """
    cdef claim answer = CLAIM_REFUSED
    cdef host_t **bucket
    cdef host_t *host
    claimed[0] = NULL
    if source.kind != RIO_SOURCE_IP:
        return CLAIM_GRANTED
    pthread_mutex_lock(&h.lock)
    bucket = &h.buckets[hosts_bucket(h, source.host)]
    host = bucket[0]
    while host != NULL and memcmp(host.address, source.host, sizeof(host.address)) != 0:
        host = host.next
    if host == NULL:
        host = <host_t *>PyMem_RawMalloc(sizeof(host_t))
        if host == NULL:
            answer = CLAIM_NO_MEMORY
        else:
            memcpy(host.address, source.host, sizeof(host.address))
            host.connections = 0
            host.next = bucket[0]
            bucket[0] = host
    if host != NULL and host.connections < h.limit:
        host.connections += 1
        claimed[0] = host
        answer = CLAIM_GRANTED
    pthread_mutex_unlock(&h.lock)
    return answer


cdef inline void hosts_release(hosts_t *h, host_t *host) noexcept nogil:
    """Count a connection as closed. Does nothing for NULL, nor in a forked child, whose connections are the parent's.
    """
    cdef host_t **place
    if host == NULL or getpid() != h.owner:
        return
    pthread_mutex_lock(&h.lock)
    rio_assert(host.connections > 0)
    host.connections -= 1
    if host.connections == 0:
        place = &h.buckets[hosts_bucket(h, host.address)]
        while place[0] != host:
            place = &place[0].next
        place[0] = host.next
        PyMem_RawFree(host)
    pthread_mutex_unlock(&h.lock)


cdef class HostTable:
    cdef hosts_t h

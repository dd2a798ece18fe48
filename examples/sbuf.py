"""A bounded buffer for producers and consumers: sbuf.c of CS:APP section 12.5.4, line for line.

sbuf_init returns the buffer. There is no sbuf_deinit, because Python frees the memory.
"""

from rioecho.csapp import *


class Sbuf:
    """The book's sbuf_t."""

    buf: list  # buffer array
    n: int  # maximum number of slots
    front: int  # buf[(front+1)%n] is first item
    rear: int  # buf[rear%n] is last item
    mutex: sem_t  # protects accesses to buf
    slots: sem_t  # counts available slots
    items: sem_t  # counts available items


def sbuf_init(n):
    """Create an empty, bounded, shared FIFO buffer with n slots."""
    sp = Sbuf()
    sp.buf = [None] * n
    sp.n = n  # buffer holds max of n items
    sp.front = sp.rear = 0  # empty buffer iff front == rear
    sp.mutex = Sem_init(1)  # binary semaphore for locking
    sp.slots = Sem_init(n)  # initially, buf has n empty slots
    sp.items = Sem_init(0)  # initially, buf has zero data items
    return sp


def sbuf_insert(sp, item):
    """Insert item onto the rear of shared buffer sp."""
    P(sp.slots)  # wait for available slot
    P(sp.mutex)  # lock the buffer
    sp.rear += 1
    sp.buf[sp.rear % sp.n] = item  # insert the item
    V(sp.mutex)  # unlock the buffer
    V(sp.items)  # announce available item


def sbuf_remove(sp):
    """Remove and return the first item from buffer sp."""
    P(sp.items)  # wait for available item
    P(sp.mutex)  # lock the buffer
    sp.front += 1
    item = sp.buf[sp.front % sp.n]  # remove the item
    V(sp.mutex)  # unlock the buffer
    V(sp.slots)  # announce available slot
    return item

"""A concurrent echo server based on select: echoservers.c of CS:APP section 12.2.1, in its names.

usage: echoservers.py <port>

check_clients differs from the book's, which calls Rio_readlineb when the descriptor is ready. That has two faults. On
a partial line it blocks until the rest arrives, and so do all other clients. If several lines arrive at once, it echoes
one of them and leaves the others in the Rio buffer, where select cannot see them. Here fill() reads what has arrived,
without blocking, and every whole line in the buffer is echoed, so that select is never called while a whole line is in
a buffer.

As in the book, an error on one connection, such as a reset by the client, ends the server, but with status 1, and a
client that sends and never reads blocks all others in Rio_writen. rioecho-server has neither limit.
"""

import sys

from rioecho.csapp import *


class Pool:
    """Represents a pool of connected descriptors."""

    read_set: fd_set  # set of all active descriptors
    ready_set: fd_set  # subset of descriptors ready for reading
    maxfd: int  # largest descriptor in read_set
    nready: int  # number of ready descriptors from select
    maxi: int  # high-water index into client array
    clientfd: list  # set of active descriptors
    clientrio: list  # set of active read buffers


byte_cnt = 0  # counts total bytes received by server
buf = bytearray(MAXLINE)


def main(argv):
    if len(argv) != 2:
        print("usage: echoservers.py <port>", file=sys.stderr)
        sys.exit(1)

    listenfd = Open_listenfd(argv[1])
    pool = init_pool(listenfd)

    while True:
        # Wait for listening/connected descriptor(s) to become ready
        pool.ready_set = pool.read_set.copy()
        pool.nready = Select(pool.maxfd + 1, pool.ready_set, None, None)

        # If listening descriptor ready, add new client to pool
        if FD_ISSET(listenfd, pool.ready_set):
            connfd, _clientaddr = Accept(listenfd)
            add_client(connfd, pool)

        # Echo the text lines from each ready connected descriptor
        check_clients(pool)


def init_pool(listenfd):
    p = Pool()
    # Initially, there are no connected descriptors
    p.maxi = -1
    p.clientfd = [-1] * FD_SETSIZE
    p.clientrio = [None] * FD_SETSIZE

    # Initially, listenfd is only member of select read set
    p.maxfd = listenfd
    p.read_set = fd_set()
    FD_ZERO(p.read_set)
    FD_SET(listenfd, p.read_set)
    return p


def add_client(connfd, p):
    p.nready -= 1
    if connfd >= FD_SETSIZE:  # the book's FD_SET writes past the end of the set
        app_error("add_client error: Too many clients")
    for i in range(FD_SETSIZE):  # find an available slot; there are as many as descriptors
        if p.clientfd[i] < 0:
            # Add connected descriptor to the pool
            p.clientfd[i] = connfd
            p.clientrio[i] = Rio_readinitb(connfd)

            # Add the descriptor to descriptor set
            FD_SET(connfd, p.read_set)

            # Update max descriptor and pool high-water mark
            p.maxfd = max(p.maxfd, connfd)
            p.maxi = max(p.maxi, i)
            break


def check_clients(p):
    for i in range(p.maxi + 1):
        if p.nready <= 0:
            break
        connfd = p.clientfd[i]
        rio = p.clientrio[i]

        # If the descriptor is ready, echo the text lines from it
        if connfd >= 0 and FD_ISSET(connfd, p.ready_set):
            p.nready -= 1
            eof = not fill(rio)
            while rio.has_line() or rio.buffered >= MAXLINE - 1 or (eof and rio.buffered):
                echo_line(rio, connfd)

            # EOF detected, remove descriptor from pool
            if eof:
                Close(connfd)
                FD_CLR(connfd, p.read_set)
                p.clientfd[i] = -1
                p.clientrio[i] = None


def fill(rio):
    """Read what has arrived into the buffer, without blocking. Returns False at EOF."""
    held = rio.buffered
    try:
        return rio.fill(held + 1, timeout=0) > held
    except BlockingIOError:  # nothing has arrived: select may report a descriptor by mistake, see its man page
        return True
    except OSError:
        unix_error("Rio_readlineb error")


def echo_line(rio, connfd):
    """Echo a line in the buffer, or the rest at EOF, so that Rio_readlineb does not block."""
    global byte_cnt
    n = Rio_readlineb(rio, buf, MAXLINE)
    byte_cnt += n
    print(f"Server received {n} ({byte_cnt} total) bytes on fd {connfd}", flush=True)
    Rio_writen(connfd, buf, n)


if __name__ == "__main__":
    Signal(SIGINT, SIG_DFL)  # as it is when a C program starts
    main(sys.argv)

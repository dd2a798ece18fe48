"""A concurrent echo server based on threads: echoservert.c of CS:APP section 12.3.8, line for line.

usage: echoservert.py <port>

Each connection has its own thread, which calls the echo() of echoserveri. connfd is passed to the thread by value, for
which the book needs Malloc and Free. As in the book, an error on one connection, such as a reset by the client, ends
the server with all its threads, but with status 1.
"""

import sys

from echoserveri import echo

from rioecho.csapp import *


def main(argv):
    if len(argv) != 2:
        print("usage: echoservert.py <port>", file=sys.stderr)
        sys.exit(1)

    listenfd = Open_listenfd(argv[1])
    while True:
        connfd, _clientaddr = Accept(listenfd)
        Pthread_create(thread, connfd)


def thread(connfd):
    """Thread routine."""
    Pthread_detach(pthread_self())
    echo(connfd)
    Close(connfd)


if __name__ == "__main__":
    Signal(SIGINT, SIG_DFL)  # as it is when a C program starts
    main(sys.argv)

"""A prethreaded concurrent echo server: echoservert_pre.c of CS:APP section 12.5.5, line for line.

usage: echoservert_pre.py <port>

It serves NTHREADS clients at a time. SBUFSIZE more wait in the shared buffer, and the rest in the listen queue. As in
the book, an error on one connection, such as a reset by the client, ends the server with all its threads, but with
status 1.
"""

import sys

from echo_cnt import echo_cnt
from sbuf import sbuf_init, sbuf_insert, sbuf_remove

from rioecho.csapp import *

NTHREADS = 4
SBUFSIZE = 16

sbuf = sbuf_init(SBUFSIZE)  # shared buffer of connected descriptors


def main(argv):
    if len(argv) != 2:
        print("usage: echoservert_pre.py <port>", file=sys.stderr)
        sys.exit(1)

    listenfd = Open_listenfd(argv[1])

    for _ in range(NTHREADS):  # create worker threads
        Pthread_create(thread)

    while True:
        connfd, _clientaddr = Accept(listenfd)
        sbuf_insert(sbuf, connfd)  # insert connfd in buffer


def thread(_vargp):
    Pthread_detach(pthread_self())
    while True:
        connfd = sbuf_remove(sbuf)  # remove connfd from buffer
        echo_cnt(connfd)  # service client
        Close(connfd)


if __name__ == "__main__":
    Signal(SIGINT, SIG_DFL)  # as it is when a C program starts
    main(sys.argv)

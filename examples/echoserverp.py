"""A concurrent echo server based on processes: echoserverp.c of CS:APP section 12.1.1, line for line.

usage: echoserverp.py <port>

It forks a child for each connection and calls the echo() of echoserveri. As in the book, an error on one connection,
such as a reset by the client, ends the child with a message on stderr, and the server continues. SIGCHLD does not
disturb Accept: the book's Signal restarts interrupted system calls, and Python retries after EINTR (PEP 475). The
program has no threads, because a fork copies only the calling thread.
"""

import contextlib
import os
import sys

from echoserveri import echo

from rioecho.csapp import *


def sigchld_handler(sig):
    with contextlib.suppress(ChildProcessError):  # no child is left
        while os.waitpid(-1, WNOHANG)[0] > 0:  # reap all that have exited: signals do not queue
            pass


def main(argv):
    if len(argv) != 2:
        print("usage: echoserverp.py <port>", file=sys.stderr)
        sys.exit(1)

    Signal(SIGCHLD, sigchld_handler)
    listenfd = Open_listenfd(argv[1])
    while True:
        connfd, _clientaddr = Accept(listenfd)
        if Fork() == 0:
            Close(listenfd)  # child closes its listening socket
            echo(connfd)  # child services client
            Close(connfd)  # child closes connection with client
            sys.exit(0)  # child exits
        Close(connfd)  # parent closes connected socket (important!)


if __name__ == "__main__":
    Signal(SIGINT, SIG_DFL)  # as it is when a C program starts
    main(sys.argv)

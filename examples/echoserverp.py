"""A concurrent echo server based on processes: echoserverp.c of CS:APP section 12.1.1, line for line.

usage: echoserverp.py <port>

It forks a child for each connection; echo() is echoserveri's. As in the book, an error on one connection (a client
that resets it, say) ends its child, which says so on stderr, and the server goes on. Accept is not disturbed by
SIGCHLD: the book's Signal has it restarted, and Python calls it again (EINTR, PEP 475). No threads here: a fork copies
only one.
"""

import contextlib
import os
import signal
import sys

from echoserveri import echo

from rioecho.csapp import Accept, Close, Open_listenfd


def sigchld_handler(sig, frame):
    with contextlib.suppress(ChildProcessError):  # there is no child any more
        while os.waitpid(-1, os.WNOHANG)[0] > 0:  # all that have ended: signals do not queue
            pass


def main(argv):
    if len(argv) != 2:
        print("usage: echoserverp.py <port>", file=sys.stderr)
        sys.exit(1)

    signal.signal(signal.SIGCHLD, sigchld_handler)
    listenfd = Open_listenfd(argv[1])
    while True:
        connfd, _clientaddr = Accept(listenfd)
        if os.fork() == 0:
            Close(listenfd)  # child closes its listening socket
            echo(connfd)  # child services client
            Close(connfd)  # child closes connection with client
            sys.exit(0)  # child exits
        Close(connfd)  # parent closes connected socket (important!)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it as it ends a C program, without a traceback
    main(sys.argv)

"""A concurrent echo server based on threads: echoservert.c of CS:APP section 12.3.8, line for line.

usage: echoservert.py <port>

Each connection has a thread of its own; echo() is echoserveri's. The thread gets connfd as the value that it was at
that moment: what the book needs Malloc and Free for. A daemon thread is a detached one, nobody joins it. As in the
book, an error on one connection (a client that resets it, say) ends the server with all its threads, but with status
1: the wrappers of rioecho.csapp end the process, where sys.exit() would end the thread only.
"""

import signal
import sys
import threading

from echoserveri import echo

from rioecho.csapp import Accept, Close, Open_listenfd


def main(argv):
    if len(argv) != 2:
        print("usage: echoservert.py <port>", file=sys.stderr)
        sys.exit(1)

    listenfd = Open_listenfd(argv[1])
    while True:
        connfd, _clientaddr = Accept(listenfd)
        threading.Thread(target=thread, args=(connfd,), daemon=True).start()


def thread(connfd):
    """Thread routine."""
    echo(connfd)
    Close(connfd)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it as it ends a C program, without a traceback
    main(sys.argv)

"""A concurrent echo server based on threads: echoservert.c of CS:APP section 12.3.8, line for line.

usage: echoservert.py <port>

Each connection has its own thread, which calls the echo() of echoserveri. connfd is passed to the thread by value, for
which the book needs Malloc and Free. A daemon thread takes the place of a detached thread. As in the book, an error on
one connection, such as a reset by the client, ends the server with all its threads, but with status 1: the wrappers of
rioecho.csapp end the process, whereas sys.exit() would end only the thread.
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

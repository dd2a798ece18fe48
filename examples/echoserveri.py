"""An iterative echo server: echoserveri.c and echo.c of CS:APP section 11.4.9, line for line.

usage: echoserveri.py <port>

It serves one client at a time; the others wait in the listen queue. As in the book, an error on one connection, such
as a reset by the client, ends the server, but with status 1. rioecho-server continues after such errors.
"""

import sys

from rioecho.csapp import *


def echo(connfd):
    buf = bytearray(MAXLINE)
    rio = Rio_readinitb(connfd)
    while (n := Rio_readlineb(rio, buf, MAXLINE)) != 0:
        print(f"server received {n} bytes\n", end="", flush=True)  # one write, because threads call this too
        Rio_writen(connfd, buf, n)


def main(argv):
    if len(argv) != 2:
        print("usage: echoserveri.py <port>", file=sys.stderr)
        sys.exit(1)

    listenfd = Open_listenfd(argv[1])
    while True:
        connfd, clientaddr = Accept(listenfd)
        client_hostname, client_port = Getnameinfo(clientaddr)
        print(f"Connected to ({client_hostname}, {client_port})", flush=True)
        echo(connfd)
        Close(connfd)


if __name__ == "__main__":
    Signal(SIGINT, SIG_DFL)  # as it is when a C program starts
    main(sys.argv)

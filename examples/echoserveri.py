"""An iterative echo server: echoserveri.c and echo.c of CS:APP section 11.4.9, line for line.

usage: echoserveri.py <port>

It serves one client at a time; the others wait in the listen queue. As in the book, an error on one connection, such
as a reset by the client, ends the server, but with status 1. rioecho-server continues after such errors.
"""

import signal
import sys

from rioecho.csapp import MAXLINE, Accept, Close, Getnameinfo, Open_listenfd, Rio_readinitb, Rio_readlineb, Rio_writen


def echo(connfd):
    rio = Rio_readinitb(connfd)
    while (buf := Rio_readlineb(rio, MAXLINE)) != b"":
        print(f"server received {len(buf)} bytes\n", end="", flush=True)  # one write, because threads call this too
        Rio_writen(connfd, buf)


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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it as it ends a C program, without a traceback
    main(sys.argv)

"""An echo client: echoclient.c of CS:APP section 11.4.9, line for line.

usage: echoclient.py <host> <port>

It sends each line of stdin and prints the echo. As in the book, it waits without limit for the echo of a last line that
has no newline, because the server echoes whole lines only; rioecho-client does not.
"""

import sys

from rioecho.csapp import *


def main(argv):
    if len(argv) != 3:
        print("usage: echoclient.py <host> <port>", file=sys.stderr)
        sys.exit(1)
    host = argv[1]
    port = argv[2]

    clientfd = Open_clientfd(host, port)
    rio = Rio_readinitb(clientfd)

    while (buf := Fgets(MAXLINE, stdin)) is not None:
        Rio_writen(clientfd, buf, len(buf))
        buf = Rio_readlineb(rio, MAXLINE)
        Fputs(buf, stdout)
    Close(clientfd)
    sys.exit(0)


if __name__ == "__main__":
    Signal(SIGINT, SIG_DFL)  # as it is when a C program starts
    main(sys.argv)

"""The body of open_listenfd (11.4.8) and of the iterative server, from the basic calls."""

import sys

from rioecho.csapp import *


def main(argv):
    optval = 1

    # Get a list of potential server addresses
    listp = Getaddrinfo(None, argv[1], AF_UNSPEC, SOCK_STREAM, 0, AI_PASSIVE | AI_ADDRCONFIG | AI_NUMERICSERV)

    # Walk the list for one that we can bind to
    for family, socktype, protocol, _, addr in listp:
        listenfd = Socket(family, socktype, protocol)

        # Eliminates "Address already in use" error from bind
        Setsockopt(listenfd, SOL_SOCKET, SO_REUSEADDR, optval)

        Bind(listenfd, addr)
        break
    Freeaddrinfo(listp)

    Listen(listenfd, LISTENQ)
    buf = bytearray(MAXBUF)
    while True:
        connfd, clientaddr = Accept(listenfd)
        while (n := Rio_readn(connfd, buf, 4)) != 0:
            Rio_writen(connfd, buf, n)
        Close(connfd)


main(sys.argv)

"""An iterative echo server that also takes commands from standard input: select.c, 12.2."""

import sys

from rioecho.csapp import *


def echo(connfd):
    buf = bytearray(MAXLINE)

    rio = Rio_readinitb(connfd)
    while (n := Rio_readlineb(rio, buf, MAXLINE)) != 0:
        Rio_writen(connfd, buf, n)


def command():
    if not (buf := Fgets(MAXLINE, stdin)):
        exit(0)  # EOF
    Fputs(buf, stdout)  # process the input command


def main(argv):
    if len(argv) != 2:
        print(f"usage: {argv[0]} <port>", file=sys.stderr)
        exit(0)
    listenfd = Open_listenfd(argv[1])

    read_set = fd_set()
    FD_ZERO(read_set)  # clear read set
    FD_SET(STDIN_FILENO, read_set)  # add stdin to read set
    FD_SET(listenfd, read_set)  # add listenfd to read set

    while True:
        ready_set = read_set.copy()
        Select(listenfd + 1, ready_set, None, None, None)
        if FD_ISSET(STDIN_FILENO, ready_set):
            command()  # read command line from stdin
        if FD_ISSET(listenfd, ready_set):
            connfd, clientaddr = Accept(listenfd)
            echo(connfd)  # echo client input until EOF
            Close(connfd)


main(sys.argv)

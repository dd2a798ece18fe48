"""Copy a text file from standard input to standard output, one line at a time: cpfile.c, 10.5.2."""

from rioecho.csapp import *


def main():
    buf = bytearray(MAXLINE)

    rio = Rio_readinitb(STDIN_FILENO)
    while (n := Rio_readlineb(rio, buf, MAXLINE)) != 0:
        Rio_writen(STDOUT_FILENO, buf, n)


main()

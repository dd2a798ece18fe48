"""Copy standard input to standard output, one byte at a time: cpstdin.c, 10.4."""

from rioecho.csapp import *


def main():
    c = bytearray(1)

    while Read(STDIN_FILENO, c, 1) != 0:
        Write(STDOUT_FILENO, c, 1)
    exit(0)


main()

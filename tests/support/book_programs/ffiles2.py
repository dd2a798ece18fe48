"""Two descriptors of one file have a position each: practice problem 10.2."""

from rioecho.csapp import *


def main():
    c = bytearray(1)

    fd1 = Open("foobar.txt", O_RDONLY, 0)
    fd2 = Open("foobar.txt", O_RDONLY, 0)
    Read(fd1, c, 1)
    Read(fd2, c, 1)
    print(f"c = {c.decode()}")
    exit(0)


main()

"""Parent and child share a position: practice problem 10.3."""

from rioecho.csapp import *


def main():
    c = bytearray(1)

    fd = Open("foobar.txt", O_RDONLY, 0)
    if Fork() == 0:
        Read(fd, c, 1)
        exit(0)
    Wait()
    Read(fd, c, 1)
    print(f"c = {c.decode()}")
    exit(0)


main()

"""I/O redirection by Dup2: practice problem 10.5."""

from rioecho.csapp import *


def main():
    c = bytearray(1)

    fd1 = Open("foobar.txt", O_RDONLY, 0)
    fd2 = Open("foobar.txt", O_RDONLY, 0)
    Read(fd2, c, 1)
    Dup2(fd2, fd1)
    Read(fd1, c, 1)
    print(f"c = {c.decode()}")
    exit(0)


main()

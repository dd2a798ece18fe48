"""The lowest free descriptor is used again: practice problem 10.1."""

from rioecho.csapp import *


def main():
    fd1 = Open("foo.txt", O_RDONLY, 0)
    Close(fd1)
    fd2 = Open("baz.txt", O_RDONLY, 0)
    print(f"fd2 = {fd2}")
    exit(0)


main()

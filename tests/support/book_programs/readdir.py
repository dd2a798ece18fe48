"""Read the contents of a directory: readdir.c, 10.7."""

import sys

from rioecho.csapp import *


def main(argv):
    streamp = Opendir(argv[1])

    while (dep := Readdir(streamp)) is not None:
        print(f"Found file: {dep.d_name}")

    Closedir(streamp)
    exit(0)


main(sys.argv)

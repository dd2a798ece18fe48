"""Convert a hex argument to a dotted-decimal string: practice problem 11.2."""

import sys

from rioecho.csapp import *


def main(argv):
    if len(argv) != 2:
        print(f"usage: {argv[0]} <hex number>", file=sys.stderr)
        exit(0)
    addr = int(argv[1], 16)
    inaddr = htonl(addr).to_bytes(4, sys.byteorder)

    buf = inet_ntop(AF_INET, inaddr)
    print(buf)

    exit(0)


main(sys.argv)

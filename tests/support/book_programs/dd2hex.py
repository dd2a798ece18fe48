"""Convert a dotted-decimal argument to a hex string: practice problem 11.3."""

import sys

from rioecho.csapp import *


def main(argv):
    if len(argv) != 2:
        print(f"usage: {argv[0]} <dotted-decimal>", file=sys.stderr)
        exit(0)

    try:
        inaddr = inet_pton(AF_INET, argv[1])
    except OSError:
        app_error("inet_pton error: invalid dotted-decimal address")

    print(f"0x{ntohl(int.from_bytes(inaddr, sys.byteorder)):x}")
    exit(0)


main(sys.argv)

"""Display the mapping of a domain name to its IP addresses: hostinfo.c, 11.4.7."""

import sys

from rioecho.csapp import *


def main(argv):
    if len(argv) != 2:
        print(f"usage: {argv[0]} <domain name>", file=sys.stderr)
        exit(0)

    # Get a list of addrinfo records
    listp = Getaddrinfo(argv[1], None, AF_INET, SOCK_STREAM)  # IPv4 only, connections only

    # Walk the list and display each IP address
    flags = NI_NUMERICHOST  # display address string instead of domain name
    for *_, ai_addr in listp:
        buf, _ = Getnameinfo(ai_addr, flags)
        print(buf)

    # Clean up
    Freeaddrinfo(listp)

    exit(0)


main(sys.argv)

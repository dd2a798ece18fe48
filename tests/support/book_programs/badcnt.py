"""An improperly synchronized counter program: badcnt.c, 12.5."""

import sys

from rioecho.csapp import *

cnt = 0  # counter


def main(argv):
    # Check input argument
    if len(argv) != 2:
        print(f"usage: {argv[0]} <niters>")
        exit(0)
    niters = int(argv[1])

    # Create threads and wait for them to finish
    tid1 = Pthread_create(thread, niters)
    tid2 = Pthread_create(thread, niters)
    Pthread_join(tid1)
    Pthread_join(tid2)

    # Check result
    if cnt != 2 * niters:
        print(f"BOOM! cnt={cnt}")
    else:
        print(f"OK cnt={cnt}")
    exit(0)


def thread(vargp):
    global cnt
    niters = vargp

    for _ in range(niters):
        cnt += 1

    return None


main(sys.argv)

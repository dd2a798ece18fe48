"""A properly synchronized counter program: goodcnt.c, 12.5.3."""

import sys

from rioecho.csapp import *

cnt = 0  # counter


def main(argv):
    global mutex
    niters = int(argv[1])

    mutex = Sem_init(1)  # semaphore that protects counter

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
        P(mutex)
        cnt += 1
        V(mutex)

    return None


main(sys.argv)

"""A solution of the first readers-writers problem: figure 12.26."""

from rioecho.csapp import *

readcnt = 0  # initially = 0
mutex = Sem_init(1)
w = Sem_init(1)
data = [0, 0]
wrong = 0
ROUNDS = 500


def reader(vargp):
    global readcnt, wrong
    for _ in range(ROUNDS):
        P(mutex)
        readcnt += 1
        if readcnt == 1:  # first in
            P(w)
        V(mutex)

        # Critical section: reading happens
        wrong += data[0] != data[1]

        P(mutex)
        readcnt -= 1
        if readcnt == 0:  # last out
            V(w)
        V(mutex)


def writer(vargp):
    for _ in range(ROUNDS):
        P(w)

        # Critical section: writing happens
        data[0] += 1
        data[1] += 1

        V(w)


def main():
    tids = [Pthread_create(routine, None) for routine in (reader, writer, reader, writer)]
    for tid in tids:
        Pthread_join(tid)
    print(f"data={data[0]} wrong={wrong}")
    exit(0)


main()

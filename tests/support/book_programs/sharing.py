"""Shared variables in threaded programs: sharing.c, 12.4."""

from rioecho.csapp import *

N = 2


def main():
    global ptr
    msgs = ["Hello from foo", "Hello from bar"]

    ptr = msgs
    for i in range(N):
        Pthread_create(thread, i)
    Pthread_exit(None)


cnt = 0
mutex = Sem_init(1)


def thread(vargp):
    global cnt
    myid = vargp
    P(mutex)
    cnt += 1
    print(f"[{myid}]: {ptr[myid]} (cnt={cnt})")
    V(mutex)
    return None


main()

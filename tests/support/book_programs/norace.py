"""Each thread has its own copy of its ID: norace.c, 12.7.4."""

from rioecho.csapp import *

N = 4


def main():
    tid = [None] * N

    for i in range(N):
        tid[i] = Pthread_create(thread, i)
    for i in range(N):
        Pthread_join(tid[i])
    exit(0)


def thread(vargp):
    myid = vargp
    print(f"Hello from thread {myid}\n", end="")
    return None


main()

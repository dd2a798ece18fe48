"""The Pthreads "Hello, world!" program: hello.c, 12.3.2."""

from rioecho.csapp import *


def main():
    tid = Pthread_create(thread, None)
    Pthread_join(tid)
    exit(0)


def thread(vargp):  # thread routine
    print("Hello, world!")
    return None


main()

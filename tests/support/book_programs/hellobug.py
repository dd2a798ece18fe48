"""The process ends before the thread has printed: practice problem 12.6, hellobug.c."""

from rioecho.csapp import *


def main():
    tid = Pthread_create(thread, None)
    exit(0)


def thread(vargp):
    Sleep(1)
    print("Hello, world!")
    return None


main()

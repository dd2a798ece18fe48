"""Sum 0..nelems-1 by threads, each in a local variable: psum-array.c and psum-local.c, 12.6."""

import sys

from rioecho.csapp import *

MAXTHREADS = 32
psum = [0] * MAXTHREADS  # partial sum computed by each thread


def main(argv):
    global nelems_per_thread
    tid = [None] * MAXTHREADS
    nthreads = int(argv[1])
    nelems = 1 << int(argv[2])
    nelems_per_thread = nelems // nthreads

    for i in range(nthreads):
        tid[i] = Pthread_create(sum_local, i)
    for i in range(nthreads):
        Pthread_join(tid[i])

    # Add up the partial sums computed by each thread
    result = 0
    for i in range(nthreads):
        result += psum[i]

    # Check final answer
    if result != (nelems * (nelems - 1)) // 2:
        print(f"Error: result={result}")
    else:
        print(f"OK: result={result}")
    exit(0)


def sum_local(vargp):
    myid = vargp  # extract thread ID
    start = myid * nelems_per_thread  # start element index
    end = start + nelems_per_thread  # end element index

    sum = 0
    for i in range(start, end):
        sum += i
    psum[myid] = sum
    return None


main(sys.argv)

"""Sum 0..nelems-1 by threads, with a sum that a mutex protects: psum-mutex.c, 12.6."""

import sys

from rioecho.csapp import *

MAXTHREADS = 32

# Global shared variables
gsum = 0  # global sum
nelems_per_thread = 0  # number of elements to sum


def main(argv):
    global nelems_per_thread, mutex
    myid = [0] * MAXTHREADS
    tid = [None] * MAXTHREADS

    # Get input arguments
    if len(argv) != 3:
        print(f"Usage: {argv[0]} <nthreads> <log_nelems>")
        exit(0)
    nthreads = int(argv[1])
    log_nelems = int(argv[2])
    nelems = 1 << log_nelems

    # Check input arguments
    if (nelems % nthreads) != 0 or (log_nelems > 31):
        print("Error: invalid nelems")
        exit(0)
    nelems_per_thread = nelems // nthreads
    mutex = Sem_init(1)

    # Create peer threads and wait for them to finish
    for i in range(nthreads):
        myid[i] = i
        tid[i] = Pthread_create(sum_mutex, myid[i])
    for i in range(nthreads):
        Pthread_join(tid[i])

    # Check final answer
    if gsum != (nelems * (nelems - 1)) // 2:
        print(f"Error: result={gsum}")
    else:
        print(f"OK: result={gsum}")

    exit(0)


def sum_mutex(vargp):
    global gsum
    myid = vargp  # extract thread ID
    start = myid * nelems_per_thread  # start element index
    end = start + nelems_per_thread  # end element index

    for i in range(start, end):
        P(mutex)
        gsum += i
        V(mutex)
    return None


main(sys.argv)

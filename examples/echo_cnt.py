"""An echo that counts the bytes of all clients: echo_cnt.c of CS:APP section 12.5.5, line for line."""

from rioecho.csapp import *

byte_cnt: int  # byte counter
mutex: sem_t  # and the mutex that protects it


def init_echo_cnt():
    global byte_cnt, mutex
    mutex = Sem_init(1)
    byte_cnt = 0


def echo_cnt(connfd):
    global byte_cnt
    buf = bytearray(MAXLINE)

    Pthread_once(init_echo_cnt)
    rio = Rio_readinitb(connfd)
    while (n := Rio_readlineb(rio, buf, MAXLINE)) != 0:
        P(mutex)
        byte_cnt += n
        print(f"server received {n} ({byte_cnt} total) bytes on fd {connfd}", flush=True)
        V(mutex)
        Rio_writen(connfd, buf, n)

"""An echo that counts the bytes of all clients: echo_cnt.c of CS:APP section 12.5.5, line for line.

Importing this module, which happens once, takes the place of the book's Pthread_once.
"""

from sbuf import P, Semaphore, V

from rioecho.csapp import MAXLINE, Rio_readinitb, Rio_readlineb, Rio_writen

byte_cnt = 0  # byte counter
mutex = Semaphore(1)  # and the mutex that protects it


def echo_cnt(connfd):
    global byte_cnt
    rio = Rio_readinitb(connfd)
    while (buf := Rio_readlineb(rio, MAXLINE)) != b"":
        P(mutex)
        byte_cnt += len(buf)
        print(f"server received {len(buf)} ({byte_cnt} total) bytes on fd {connfd}", flush=True)
        V(mutex)
        Rio_writen(connfd, buf)

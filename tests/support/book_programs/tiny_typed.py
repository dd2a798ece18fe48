"""The Tiny Web server as the book has it, with its faults: tiny.c, 11.6."""

import os
import sys

from rioecho.csapp import *


def main(argv):
    # Check command line args
    if len(argv) != 2:
        print(f"usage: {argv[0]} <port>", file=sys.stderr)
        exit(1)

    listenfd = Open_listenfd(argv[1])
    while True:
        connfd, clientaddr = Accept(listenfd)
        hostname, port = Getnameinfo(clientaddr, 0)
        print(f"Accepted connection from ({hostname}, {port})", flush=True)
        doit(connfd)
        Close(connfd)


def doit(fd):
    buf = bytearray(MAXLINE)

    # Read request line and headers
    rio = Rio_readinitb(fd)
    if not (n := Rio_readlineb(rio, buf, MAXLINE)):
        return
    print(buf[:n].decode(), end="", flush=True)
    method, uri, version = buf[:n].decode().split()
    if method.upper() != "GET":
        clienterror(fd, method, "501", "Not Implemented", "Tiny does not implement this method")
        return
    read_requesthdrs(rio)

    # Parse URI from GET request
    is_static, filename, cgiargs = parse_uri(uri)
    try:
        sbuf = os.stat(filename)
    except OSError:
        clienterror(fd, filename, "404", "Not found", "Tiny couldn't find this file")
        return

    if is_static:  # serve static content
        if not S_ISREG(sbuf.st_mode) or not (S_IRUSR & sbuf.st_mode):
            clienterror(fd, filename, "403", "Forbidden", "Tiny couldn't read the file")
            return
        serve_static(fd, filename, sbuf.st_size)
    else:  # serve dynamic content
        if not S_ISREG(sbuf.st_mode) or not (S_IXUSR & sbuf.st_mode):
            clienterror(fd, filename, "403", "Forbidden", "Tiny couldn't run the CGI program")
            return
        serve_dynamic(fd, filename, cgiargs)


def read_requesthdrs(rp):
    buf = bytearray(MAXLINE)

    n = Rio_readlineb(rp, buf, MAXLINE)
    print(buf[:n].decode(), end="")
    while buf[:n] != b"\r\n":
        n = Rio_readlineb(rp, buf, MAXLINE)
        print(buf[:n].decode(), end="")


def parse_uri(uri):
    if "cgi-bin" not in uri:  # static content
        cgiargs = ""
        filename = "." + uri
        if uri[-1] == "/":
            filename += "home.html"
        return True, filename, cgiargs
    else:  # dynamic content
        uri, _, cgiargs = uri.partition("?")
        return False, "." + uri, cgiargs


def serve_static(fd, filename, filesize):
    # Send response headers to client
    buf = "HTTP/1.0 200 OK\r\n"
    buf += "Server: Tiny Web Server\r\n"
    buf += f"Content-length: {filesize}\r\n"
    buf += "Content-type: text/html\r\n\r\n"
    Rio_writen(fd, buf.encode(), len(buf))

    # Send response body to client
    srcfd = Open(filename, O_RDONLY, 0)
    srcp = Mmap(filesize, PROT_READ, MAP_PRIVATE, srcfd, 0)
    Close(srcfd)
    Rio_writen(fd, srcp, filesize)
    Munmap(srcp)


def serve_dynamic(fd, filename, cgiargs):
    emptylist = [filename]

    # Return first part of HTTP response
    buf = b"HTTP/1.0 200 OK\r\n"
    Rio_writen(fd, buf, len(buf))
    buf = b"Server: Tiny Web Server\r\n"
    Rio_writen(fd, buf, len(buf))

    if Fork() == 0:  # child
        # Real server would set all CGI vars here
        environ["QUERY_STRING"] = cgiargs
        Dup2(fd, STDOUT_FILENO)  # redirect stdout to client
        Execve(filename, emptylist, environ)  # run CGI program
    Wait()  # parent waits for and reaps child


def clienterror(fd, cause, errnum, shortmsg, longmsg):
    # Build the HTTP response body
    body = "<html><title>Tiny Error</title>"
    body += f"{errnum}: {shortmsg}\r\n"
    body += f"<p>{longmsg}: {cause}\r\n"

    # Print the HTTP response
    buf = f"HTTP/1.0 {errnum} {shortmsg}\r\n"
    Rio_writen(fd, buf.encode(), len(buf))
    buf = f"Content-length: {len(body)}\r\n\r\n"
    Rio_writen(fd, buf.encode(), len(buf))
    Rio_writen(fd, body.encode(), len(body))


main(sys.argv)

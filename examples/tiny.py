"""The Tiny Web server: tiny.c of CS:APP section 11.6, in its names. Iterative, HTTP/1.0, GET only.

usage: tiny.py <port>

It serves the files of the current directory and runs the programs in its directory cgi-bin. tiny-home has an example of
both: cd tiny-home; python ../tiny.py 8000. Whatever the book's Tiny does not implement is missing here too, for example
HEAD (501).

The following faults of the book's Tiny are fixed:

* "/../x", "//cgi-bin/x" and symbolic links led out of the served directory, or to the source of a CGI program, and a
  "cgi-bin" anywhere in the URI executed the file. Now the resolved path is checked, and the answer is a 403.
* A client that disconnected, or a file that could not be opened or was empty, ended the server (SIGPIPE, the wrappers,
  mmap of 0 bytes; truncating a mapped file raises SIGBUS). Now an error on one connection is an exception of a Rio
  method; it is reported on stderr and ends that connection only.
* A client that sent nothing or stopped reading blocked the server, and one that disconnected in the middle of the
  headers caused an endless loop. Now every wait is limited (TIMEOUT, CGI_TIMEOUT, LINGER).
* Request lines of fewer than three words were read past their end, and a header longer than a buffer was parsed as two.
  Now both are a 400, as are lines of MAXLINE bytes or more and more than MAXHDRS headers.
* Closing the connection with unread headers caused a reset, which discards the response in transit. Now hang_up waits
  for the client to close.
* Text from the client is escaped in error pages (scripts) and on the terminal (escape sequences).
* The server waits for the CGI program and reports on stderr if it failed. As in the book, the client has received a 200
  by then.
"""

import html
import os
import signal
import socket
import sys
import time

from rioecho import LineTooLong, Rio
from rioecho.csapp import *

TIMEOUT = 10.0  # seconds for the whole request, and for each write of the response
CGI_TIMEOUT = 60.0  # seconds that a CGI program may run
LINGER = 2.0  # seconds to wait for the client to close, after the response has been sent
MAXHDRS = 100  # lines
PIECE = 1 << 16  # bytes


def main(argv):
    # Check command line args
    if len(argv) != 2:
        print("usage: tiny.py <port>", file=sys.stderr)
        sys.exit(1)

    listenfd = Open_listenfd(argv[1])
    while True:
        connfd, clientaddr = Accept(listenfd)
        hostname, port = Getnameinfo(clientaddr)
        print(f"Accepted connection from ({hostname}, {port})", flush=True)
        try:
            rio = Rio(connfd, bufsize=RIO_BUFSIZE, max_line=MAXLINE - 1, timeout=TIMEOUT)
            doit(rio)
            hang_up(rio)
        except OSError as exc:  # the client has disconnected or timed out
            print(f"doit error: {exc}", file=sys.stderr, flush=True)
        Close(connfd)


def doit(rio):
    """Handle one HTTP request/response transaction."""
    # Read request line and headers
    deadline = time.monotonic() + TIMEOUT
    try:
        if (buf := read_line(rio, deadline)) == b"":
            return
        read_requesthdrs(rio, deadline)
        method, uri, _version = parse_request(buf)
    except ValueError as exc:
        clienterror(rio, str(exc).encode(), "400", "Bad Request", "Tiny couldn't understand the request")
        return
    if method.upper() != b"GET":
        clienterror(rio, method, "501", "Not Implemented", "Tiny does not implement this method")
        return

    # Parse URI from GET request
    is_static, filename, cgiargs = parse_uri(uri)
    if is_static:
        reason = "Tiny couldn't read the file"
        allowed = leads_into(filename, b".") and not leads_into(filename, b"cgi-bin")
    else:
        reason = "Tiny couldn't run the CGI program"
        allowed = leads_into(filename, b"cgi-bin")
    if not allowed:  # before stat(), so that the answer does not reveal whether the file exists
        clienterror(rio, filename, "403", "Forbidden", reason)
        return
    try:
        sbuf = os.stat(filename)
    except OSError:
        clienterror(rio, filename, "404", "Not found", "Tiny couldn't find this file")
        return

    permission = S_IRUSR if is_static else S_IXUSR
    if not S_ISREG(sbuf.st_mode) or not permission & sbuf.st_mode:
        clienterror(rio, filename, "403", "Forbidden", reason)
        return
    if is_static:  # serve static content
        try:
            srcfd = os.open(filename, O_RDONLY)
        except OSError:  # unreadable, or removed in the meantime
            clienterror(rio, filename, "403", "Forbidden", reason)
            return
        try:
            serve_static(rio, filename, srcfd, sbuf.st_size)
        finally:
            Close(srcfd)
    else:  # serve dynamic content
        serve_dynamic(rio, filename, cgiargs)


def read_line(rio, deadline):
    """Read a text line and print it. Raises ValueError for a line that is too long."""
    try:
        buf = rio.readline(timeout=max(0.0, deadline - time.monotonic()))
    except LineTooLong as exc:
        raise ValueError(f"a line of more than {exc.limit} bytes") from None
    if buf:
        print(repr(buf.rstrip(b"\r\n"))[2:-1], flush=True)  # with control characters escaped, for the terminal
    return buf


def read_requesthdrs(rio, deadline):
    """Read HTTP request headers, through the empty line."""
    for _ in range(MAXHDRS + 1):
        buf = read_line(rio, deadline)
        if buf in (b"\r\n", b"\n"):
            return
        if not buf.endswith(b"\n"):
            raise ValueError("end of input in the headers")
    raise ValueError(f"more than {MAXHDRS} headers")


def parse_request(buf):
    """Parse the request line into method, URI and version."""
    words = buf.split()
    if len(words) != 3:
        raise ValueError("a request line must be: method URI version")
    if not words[1].startswith(b"/") or b"\0" in words[1]:
        raise ValueError("a URI must begin with a slash and have no NUL")
    return words


def parse_uri(uri):
    """Parse URI into filename and CGI args; is_static is False if dynamic content, True if static."""
    path, _, cgiargs = uri.partition(b"?")
    if not path.startswith(b"/cgi-bin/"):  # static content
        filename = b"." + uri
        if uri.endswith(b"/"):
            filename += b"home.html"
        return True, filename, b""
    else:  # dynamic content
        return False, b"." + path, cgiargs


def leads_into(filename, folder):
    """Report whether the file is in the folder after ".." and symbolic links are resolved."""
    real = os.path.realpath(folder)
    return os.path.commonpath([real, os.path.realpath(filename)]) == real


def serve_static(rio, filename, srcfd, filesize):
    """Copy a file back to the client."""
    # Send response headers to client
    filetype = get_filetype(filename)
    rio.write(b"HTTP/1.0 200 OK\r\n")
    rio.write(b"Server: Tiny Web Server\r\n")
    rio.write(b"Content-length: %d\r\n" % filesize)
    rio.write(b"Content-type: %s\r\n\r\n" % filetype)
    rio.flush()

    # Send response body to client
    while filesize and (buf := rio_readn(srcfd, min(filesize, PIECE))):
        rio.writen(buf)
        filesize -= len(buf)


def get_filetype(filename):
    """Derive file type from the end of the file name."""
    if filename.endswith(b".html"):
        return b"text/html"
    elif filename.endswith(b".gif"):
        return b"image/gif"
    elif filename.endswith(b".png"):
        return b"image/png"
    elif filename.endswith(b".jpg"):
        return b"image/jpeg"
    else:
        return b"text/plain"


def serve_dynamic(rio, filename, cgiargs):
    """Run a CGI program on behalf of the client."""
    # Return first part of HTTP response
    rio.write(b"HTTP/1.0 200 OK\r\n")
    rio.write(b"Server: Tiny Web Server\r\n")
    rio.flush()

    pid = os.fork()
    if pid == 0:  # child
        # Real server would set all CGI vars here
        os.environb[b"QUERY_STRING"] = cgiargs
        signal.setitimer(signal.ITIMER_REAL, CGI_TIMEOUT)  # Execve keeps the timer: SIGALRM ends the program
        Dup2(rio.fileno(), STDOUT_FILENO)  # redirect stdout to client
        Execve(filename, [filename], environ)  # run CGI program
    _, status = os.waitpid(pid, 0)  # parent waits for and reaps child
    if status != 0:
        print(f"CGI program ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr, flush=True)


def clienterror(rio, cause, errnum, shortmsg, longmsg):
    """Return an error message to the client."""
    cause = html.escape(cause.decode("ascii", "backslashreplace"))

    # Print the HTTP response headers
    rio.write(f"HTTP/1.0 {errnum} {shortmsg}\r\n".encode())
    rio.write(b"Content-type: text/html\r\n\r\n")

    # Print the HTTP response body
    rio.write(b"<html><title>Tiny Error</title>")
    rio.write(b'<body bgcolor="ffffff">\r\n')
    rio.write(f"{errnum}: {shortmsg}\r\n".encode())
    rio.write(f"<p>{longmsg}: {cause}\r\n".encode())
    rio.write(b"<hr><em>The Tiny Web server</em>\r\n")
    rio.flush()


def hang_up(rio):
    """Half-close the connection and wait for the client to close, discarding what it still sends."""
    with socket.socket(fileno=os.dup(rio.fileno())) as sock:
        sock.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + LINGER
    try:
        while rio.read1(timeout=max(0.0, deadline - time.monotonic())):
            pass
    except (TimeoutError, BlockingIOError):  # the time to linger is over
        pass


if __name__ == "__main__":
    Signal(SIGINT, SIG_DFL)  # as it is when a C program starts
    main(sys.argv)

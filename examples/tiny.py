"""The Tiny Web server: tiny.c of CS:APP section 11.6, in its names. Iterative, HTTP/1.0, GET only.

usage: tiny.py <port>

It serves the files of the current directory and runs the programs in its folder cgi-bin; tiny-home has an example of
both: cd tiny-home; python ../tiny.py 8000. Everything else that the book leaves out is left out here, HEAD too (501).

What was dangerous in the book's Tiny, and is mended:

* "/../x", "//cgi-bin/x" and symbolic links led out of the served directory, or to the text of a CGI program, and a
  "cgi-bin" anywhere in the URI had the file run. What a name really leads to is looked at now, and gets a 403.
* A client that vanished, or a file that could not be opened or was empty, ended the server (SIGPIPE, the wrappers, mmap
  of 0 bytes; a mapped file that another program cuts is a SIGBUS). Here reading and writing are Rio's methods, which
  raise, and an error on one connection is told on stderr and ends that connection.
* A client that said nothing, or stopped reading, stopped the server, and one that left in the middle of the headers
  sent it into an endless loop. Now every wait has an end (TIMEOUT, CGI_TIMEOUT, LINGER).
* Request lines of less than three words were read past their end, and a header longer than a buffer was taken for two.
  Those are a 400 now, as is every line of MAXLINE bytes or more, and more than MAXHDRS headers.
* Headers that nobody had read yet turned the close into a reset, which discards the answer on its way, so hang_up waits
  for the client to close.
* The client's text is quoted where it is shown: in an error page (scripts), and on the terminal (escape sequences).
* It waits for the CGI program that it started, and tells on stderr if that failed (the client has had its 200 by then,
  as in the book).
"""

import html
import os
import signal
import socket
import stat
import sys
import time

from rioecho import LineTooLong, Rio
from rioecho.csapp import MAXLINE, RIO_BUFSIZE, Accept, Close, Getnameinfo, Open_listenfd, rio_readn

TIMEOUT = 10.0  # seconds, for the whole request, and for each piece of the answer
CGI_TIMEOUT = 60.0  # seconds that a CGI program may run
LINGER = 2.0  # seconds for the client to close the connection, once it has been sent all
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
        except OSError as exc:  # the client is gone, or does nothing
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
    if not allowed:  # nor is it told whether there is such a file
        clienterror(rio, filename, "403", "Forbidden", reason)
        return
    try:
        sbuf = os.stat(filename)
    except OSError:
        clienterror(rio, filename, "404", "Not found", "Tiny couldn't find this file")
        return

    permission = stat.S_IRUSR if is_static else stat.S_IXUSR
    if not stat.S_ISREG(sbuf.st_mode) or not permission & sbuf.st_mode:
        clienterror(rio, filename, "403", "Forbidden", reason)
        return
    if is_static:  # serve static content
        try:
            srcfd = os.open(filename, os.O_RDONLY)
        except OSError:  # another user's, or just removed
            clienterror(rio, filename, "403", "Forbidden", reason)
            return
        try:
            serve_static(rio, filename, srcfd, sbuf.st_size)
        finally:
            Close(srcfd)
    else:  # serve dynamic content
        serve_dynamic(rio, filename, cgiargs)


def read_line(rio, deadline):
    """Read a text line, and print it; a LineTooLong is a ValueError."""
    try:
        buf = rio.readline(timeout=max(0.0, deadline - time.monotonic()))
    except LineTooLong as exc:
        raise ValueError(f"a line of more than {exc.limit} bytes") from None
    if buf:
        print(repr(buf.rstrip(b"\r\n"))[2:-1], flush=True)  # what a terminal would obey is shown as \x1b and the like
    return buf


def read_requesthdrs(rio, deadline):
    """Read HTTP request headers, through the empty line."""
    for _ in range(MAXHDRS + 1):
        buf = read_line(rio, deadline)
        if buf in (b"\r\n", b"\n"):
            return
        if not buf.endswith(b"\n"):
            raise ValueError("the end of the input in the headers")
    raise ValueError(f"more than {MAXHDRS} headers")


def parse_request(buf):
    """Parse the request line into method, URI and version."""
    words = buf.split()
    if len(words) != 3:
        raise ValueError("a request line is: method URI version")
    if not words[1].startswith(b"/") or b"\0" in words[1]:
        raise ValueError("a URI that does not begin with a slash, or has a NUL in it")
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
    """Is the file in the folder, after all ".." and symbolic links?"""
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
        try:
            # Real server would set all CGI vars here
            environ = {**os.environb, b"QUERY_STRING": cgiargs}
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a program inherits that
            signal.setitimer(signal.ITIMER_REAL, CGI_TIMEOUT)  # goes on in the program: SIGALRM ends it
            os.dup2(rio.fileno(), 1)  # redirect stdout to client
            os.execve(filename, [filename], environ)  # noqa: S606 - run CGI program
        except OSError as exc:
            print(f"Execve error: {exc}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
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
    """Say that this was all, and wait for the client to close, throwing away what it still sends."""
    with socket.socket(fileno=os.dup(rio.fileno())) as sock:
        sock.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + LINGER
    try:
        while rio.read1(timeout=max(0.0, deadline - time.monotonic())):
            pass
    except (TimeoutError, BlockingIOError):  # it has had its time
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it as it ends a C program, without a traceback
    main(sys.argv)

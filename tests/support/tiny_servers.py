"""Minimal servers for the protocols of the standard library's clients."""

import contextlib
import http.server
import itertools
import socket
import socketserver

from support.conversations import LONG

#: Fills every buffer between the two ends several times.
BIG = b"".join(b"%031d\n" % number for number in range(1 << 16))  # 2 MiB


class Http(http.server.BaseHTTPRequestHandler):
    """Serves responses framed in every way; POST returns the body. The header Reader is the type of ``rfile``."""

    protocol_version = "HTTP/1.1"
    timeout = LONG
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/chunked":
            self.head(("Transfer-Encoding", "chunked"))
            for chunk in pieces(BIG):
                self.wfile.write(b"%x;extension\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\nTrailer: ignored\r\n\r\n")
        elif self.path == "/until-close":
            self.head(("Connection", "close"))
            self.wfile.write(BIG)
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/small")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path in ("/big", "/small"):
            self.answer(BIG if self.path == "/big" else b"small\n")
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815, the name is http.server's

    def do_POST(self):
        if self.headers["Transfer-Encoding"] == "chunked":
            self.answer(b"".join(self.chunks()))
        else:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            assert self.rfile.readline() == b"\r\n"
        assert self.rfile.readline() == b"\r\n"

    def head(self, *headers):
        self.send_response(200)
        for header in headers:
            self.send_header(*header)
        self.send_header("Reader", type(self.rfile).__name__)
        self.end_headers()

    def answer(self, body):
        self.head(("Content-Length", str(len(body))))
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class BufferedHttp(Http):
    wbufsize = -1


def pieces(data):
    """Cut the data into pieces of 1 byte, 10 bytes, 100 bytes and so on, and the rest."""
    ends = [0, 1, 11, 111, 1111, 11111, 111111, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


class LineHandler(socketserver.StreamRequestHandler):
    """The base of line-based protocols; all its I/O goes through socket files."""

    timeout = LONG
    wbufsize = -1
    disable_nagle_algorithm = True

    def say(self, *lines):
        self.wfile.writelines(line.encode() + b"\r\n" for line in lines)
        self.wfile.flush()

    def commands(self):
        """Yield the commands as (verb, argument)."""
        for line in self.rfile:
            verb, _, argument = line.decode().rstrip("\r\n").partition(" ")
            yield verb.upper(), argument

    def stuffed(self, message):
        """Yield the lines of a message with dot-stuffing (RFC 1939, RFC 5321) and the final dot."""
        for line in message.splitlines(keepends=True):
            yield b"." + line if line.startswith(b".") else line
        yield b".\r\n"


class Smtp(LineHandler):
    """Appends messages to ``server.messages``. ``server.starttls`` is an SSLContext, or None for no STARTTLS."""

    MAX_LINE = 1000  # RFC 5321, 4.5.3.1.6

    def handle(self):
        self.say("220 localhost ready")
        while line := self.rfile.readline(self.MAX_LINE + 1):
            if len(line) > self.MAX_LINE:
                while not line.endswith(b"\n"):
                    line = self.rfile.readline(self.MAX_LINE)
                self.say("500 line too long")
                continue
            match line.split(None, 1)[0].upper():
                case b"EHLO":
                    offers = ["STARTTLS"] if self.server.starttls else []
                    self.say("250-localhost", *(f"250-{offer}" for offer in offers), "250 SIZE 100000000")
                case b"MAIL" | b"RCPT" | b"RSET":
                    self.say("250-well", "250-all is", "250 fine")
                case b"DATA":
                    self.say("354 go ahead")
                    self.server.messages.append(b"".join(self.message()))
                    self.say("250 taken")
                case b"STARTTLS":
                    self.say("220 go ahead")
                    self.encrypt()
                case b"HELP":
                    self.say("214 " + "blah" * 3000)
                case b"QUIT":
                    self.say("221 bye")
                    return
                case _:
                    self.say("502 unknown")

    def message(self):
        while (line := self.rfile.readline()) != b".\r\n":
            assert line, "end of input inside a message"
            yield line.removeprefix(b".")

    def encrypt(self):
        self.rfile.close()
        self.wfile.close()
        self.request = self.server.starttls.wrap_socket(self.request, server_side=True)
        self.setup()

    def finish(self):
        super().finish()
        self.request.close()  # the server closes only the accepted socket, not the TLS socket of STARTTLS


class Pop3(LineHandler):
    """Serves ``server.messages`` as the mailbox."""

    def handle(self):
        self.say("+OK ready")
        messages = self.server.messages
        for verb, argument in self.commands():
            match verb:
                case "USER" | "PASS" | "NOOP":
                    self.say("+OK")
                case "STAT":
                    self.say(f"+OK {len(messages)} {sum(map(len, messages))}")
                case "LIST":
                    sizes = (f"{number} {len(message)}" for number, message in enumerate(messages, 1))
                    self.say("+OK", *sizes, ".")
                case "RETR":
                    self.wfile.write(b"+OK\r\n")
                    self.wfile.writelines(self.stuffed(messages[int(argument) - 1]))
                    self.wfile.flush()
                case "TOP":
                    self.say("+OK", "blah" * 3000, ".")
                case "QUIT":
                    self.say("+OK bye")
                    return
                case _:
                    self.say("-ERR unknown")


class Imap(LineHandler):
    """Serves ``server.messages`` as INBOX."""

    def handle(self):
        self.say("* OK ready")
        messages = self.server.messages
        for tag, command in self.commands():
            verb, _, argument = command.partition(" ")
            match verb:
                case "CAPABILITY":
                    self.say("* CAPABILITY IMAP4rev1")
                case "LOGIN":
                    assert argument == 'user "pass word"'
                case "SELECT":
                    self.say(r"* FLAGS (\Seen \Deleted)", f"* {len(messages)} EXISTS", "* OK [UIDVALIDITY 1] valid")
                case "FETCH":
                    for number, message in enumerate(messages, 1):
                        head = b"* %d FETCH (RFC822 {%d}" % (number, len(message))
                        self.wfile.write(b"%b\r\n%b FLAGS ())\r\n" % (head, message))
                case "APPEND":
                    self.say("+ go ahead")
                    messages.append(self.rfile.read(int(argument.rpartition("{")[2].rstrip("}"))))
                    assert self.rfile.readline() == b"\r\n"
                case "LOGOUT":
                    self.say("* BYE", f"{tag} OK")
                    return
                case _:
                    self.say(f"{tag} BAD unknown")
                    continue
            self.say(f"{tag} OK done")


class Ftp(LineHandler):
    """Serves ``server.files``, a dict by name, over passive data connections."""

    def handle(self):
        self.say("220-several lines", " of welcome", "220 ready")
        for verb, argument in self.commands():
            match verb:
                case "USER":
                    self.say("331 and the password?")
                case "PASS":
                    self.say("230-welcome", "230 done")
                case "TYPE":
                    self.say("200 set")
                case "PASV":
                    self.passive()
                case "RETR" if argument not in self.server.files:
                    self.listener.close()
                    self.say("550 no such file")
                case "RETR":
                    with self.transfer("wb") as file:
                        file.write(self.server.files[argument])
                case "STOR":
                    with self.transfer("rb") as file:
                        self.server.files[argument] = file.read()
                case "LIST":
                    with self.transfer("w", encoding="utf-8", newline="\r\n") as file:
                        file.writelines(f"{name}\n" for name in self.server.files)
                case "QUIT":
                    self.say("221 bye")
                    return
                case _:
                    self.say("502 unknown")

    def passive(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(LONG)
        port = self.listener.getsockname()[1]
        self.say(f"227 Entering Passive Mode (127,0,0,1,{port >> 8},{port & 255})")

    @contextlib.contextmanager
    def transfer(self, mode, **text):
        """Yield a file over the data connection. The socket is closed first, so that closing the file ends it."""
        self.say("150 here it comes")
        with self.listener:
            data, _ = self.listener.accept()
        data.settimeout(LONG)
        with data:
            file = data.makefile(mode, **text)
        with file:
            yield file
        self.say("226 done")

"""An HTTP server: GET /n has a body of n bytes, and GET /until-close/n one that ends with the connection.

    http_server.py [CERTIFICATE KEY]

It prints the address that it listens on, and serves a connection at a time in a thread.
"""

import http.server
import ssl
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        kind, _, size = self.path.rpartition("/")
        self.send_response(200)
        if kind == "/until-close":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(bytes(int(size)))

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    context = None

    def finish_request(self, request, client_address):
        if self.context:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)
        if self.context:
            request.close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # clients disconnect as they like
            super().handle_error(request, client_address)


with Server(("127.0.0.1", 0), Handler) as server:
    if sys.argv[1:]:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(*sys.argv[1:])
    print("listening on {}:{}".format(*server.server_address), flush=True)
    server.serve_forever()

"""A Locust user on Rio: the echo server under load from several processes or hosts.

    pip install rioecho locust
    locust -f examples/locustfile.py --host localhost:8000                    on one host, with a web interface
    locust -f examples/locustfile.py --host localhost:8000 --master           for several: once, and on each of them
    locust -f examples/locustfile.py --worker --master-host ADDRESS

Locust's users are greenlets and its sockets are gevent's: a Rio on one of them lets the other users run while it
waits.
Every echo is compared with what was sent. A user whose connection is lost connects again.
"""

import time

from locust import User, constant, task

import rioecho


class EchoUser(User):
    """Sends a line, waits for its echo, and reports the time to Locust."""

    wait_time = constant(0)
    line = b"x" * 63 + b"\n"
    timeout = 10.0

    def on_start(self):
        self.rio = None

    def on_stop(self):
        if self.rio is not None:
            self.rio.close()

    @task
    def echo(self):
        """Send one line and read its echo: one request of Locust's statistics."""
        error = None
        begun = time.perf_counter()
        try:
            if self.rio is None:
                host, _, port = self.host.rpartition(":")
                self.rio = rioecho.connect(host.strip("[]"), port, timeout=self.timeout)
            self.rio.writen(self.line)
            answer = self.rio.readexactly(len(self.line))
            if answer != self.line:
                raise ValueError(f"wrong echo: {answer!r}")
        except (OSError, EOFError, ValueError) as failed:
            error = failed
            if self.rio is not None:
                self.rio.close()
                self.rio = None
        self.environment.events.request.fire(
            request_type="echo",
            name="line",
            response_time=(time.perf_counter() - begun) * 1000,  # milliseconds
            response_length=0 if error else len(self.line),
            exception=error,
        )
        if self.rio is None:
            time.sleep(0.1)  # gevent's: the server is not there

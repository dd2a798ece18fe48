"""imaplib with Dovecot.

Each function is a context manager that yields a function: it runs the operation a number of times.
"""

from __future__ import annotations

import imaplib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat

from measure import Meter

Run = Callable[[int], None]


@contextmanager
def connected(port: int, password: str, certificate: str | None) -> Iterator[imaplib.IMAP4]:
    if certificate is None:
        connection = imaplib.IMAP4("127.0.0.1", port)
    else:
        context = ssl.create_default_context(cafile=certificate)
        connection = imaplib.IMAP4_SSL("127.0.0.1", port, ssl_context=context)
    with connection:
        connection.login("bench", password)
        connection.select(readonly=True)
        yield connection


@contextmanager
def noop(meter: Meter, port: int, password: str, certificate: str | None = None) -> Iterator[Run]:
    with connected(port, password, certificate) as connection:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                connection.noop()

        yield run


@contextmanager
def fetch(meter: Meter, size: int, port: int, password: str, certificate: str | None = None) -> Iterator[Run]:
    """Fetch the first mail of the mailbox, which has at least ``size`` bytes."""
    with connected(port, password, certificate) as connection:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                _, data = connection.fetch("1", "(BODY.PEEK[])")
                if len(data[0][1]) < size:
                    raise EOFError

        yield run

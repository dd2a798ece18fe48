"""PyMySQL with MariaDB, and pg8000 with PostgreSQL.

Each function is a context manager that yields a function: it runs the operation a number of times.
"""

from __future__ import annotations

import contextlib
import io
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat

from measure import Meter

Run = Callable[[int], None]


@contextmanager
def pymysql(meter: Meter, query: str, rows: int, port: int, certificate: str | None = None) -> Iterator[Run]:
    """Run a query and fetch its rows; over TLS with the server's ``certificate``."""
    import pymysql

    connection = pymysql.connect(
        host="127.0.0.1",
        port=port,
        user="root",
        database="test1",
        ssl=context(certificate),
        ssl_disabled=not certificate,
    )
    with contextlib.closing(connection), connection.cursor() as cursor:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                cursor.execute(query)
                check(cursor.fetchall(), rows)

        yield run


@contextmanager
def pg8000(
    meter: Meter, query: str, rows: int, port: int, password: str, certificate: str | None = None
) -> Iterator[Run]:
    """Run a query and fetch its rows; over TLS with the server's ``certificate``."""
    with pg8000_connected(port, password, certificate) as connection:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                check(connection.run(query), rows)

        yield run


@contextmanager
def pg8000_copy(meter: Meter, query: str, rows: int, port: int, password: str) -> Iterator[Run]:
    """Copy the rows of a query out of the server."""
    with pg8000_connected(port, password, None) as connection:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                stream = io.BytesIO()
                connection.run(f"copy ({query}) to stdout", stream=stream)
                check(stream.getvalue().splitlines(), rows)

        yield run


@contextmanager
def pg8000_connected(port: int, password: str, certificate: str | None) -> Iterator:
    import pg8000.native

    connection = pg8000.native.Connection(
        "postgres", host="127.0.0.1", port=port, password=password, ssl_context=context(certificate) or False
    )
    with contextlib.closing(connection):
        yield connection


def context(certificate: str | None) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=certificate) if certificate else None


def check(fetched: list | tuple, rows: int) -> None:
    if len(fetched) != rows:
        raise EOFError(f"{len(fetched)} rows instead of {rows}")

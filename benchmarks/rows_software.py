"""The rows about programs that read with socket.makefile, each with its server, and with rioecho.makefile instead."""

from __future__ import annotations

from collections.abc import Callable

from measure import Row, Settings
from processes import PEERS
from sides import row

from support.services import MAIL, PASSWORD, Server

HTTP_SERVER = PEERS / "http_server.py"
MARIADB_ROWS = "select seq, concat('row ', seq), seq / 7 from seq_1_to_20000"
POSTGRESQL_ROWS = "select n, 'row ' || n, n / 7.0 from generate_series(1, 20000) n"


def site(settings: Settings) -> dict:
    return _reached(settings.services.http(HTTP_SERVER), settings)


def secure_site(settings: Settings) -> dict:
    return _reached(settings.services.https(HTTP_SERVER), settings, tls=True)


def mariadb(tls: bool) -> Callable[[Settings], dict]:
    return lambda settings: _reached(settings.services.mariadb(), settings, tls)


def postgresql(tls: bool) -> Callable[[Settings], dict]:
    return lambda settings: _reached(settings.services.postgresql(), settings, tls, password=PASSWORD)


def dovecot(tls: bool) -> Callable[[Settings], dict]:
    return lambda settings: _reached(settings.services.dovecot(), settings, tls, password=PASSWORD)


def _reached(server: Server, settings: Settings, tls: bool = False, **more: str) -> dict:
    """Return the arguments with which a client reaches a server."""
    if not tls:
        return {"port": server.port, **more}
    return {"port": server.tls_port or server.port, "certificate": settings.services.certificate()[0], **more}


def rows() -> list[Row]:
    return [*http_rows(), *database_rows(), *mail_rows()]


def http_rows() -> list[Row]:
    return [
        *(
            row(f"http.client: a body of {name}", "web.http_client", 1.0, arguments={"path": path}, service=site)
            for name, path in (
                ("1 kB", "/1000"),
                ("0.3 MB", "/300000"),
                ("1 MB", "/1000000"),
                ("12 MB", "/12000000"),
            )
        ),
        *(
            row(
                f"http.client, TLS: a body of {name}",
                "web.http_client",
                1.0,
                arguments={"path": path},
                service=secure_site,
            )
            for name, path in (("1 kB", "/1000"), ("1 MB", "/1000000"))
        ),
        row("http.server: a POST of 4 MB", "web.http_server", 1.0, arguments={"size": 4_000_000}),
        *(
            row(f"urllib.request: {name}", "web.urllib_request", 1.0, arguments={"path": path}, service=site)
            for name, path in (
                ("a page of 1 kB", "/1000"),
                ("a page of 1 MB", "/1000000"),
                ("1 MB to the end of the connection", "/until-close/1000000"),
            )
        ),
    ]


def database_rows() -> list[Row]:
    found = []
    for client, server, series, blob in (
        ("pymysql", mariadb, MARIADB_ROWS, "select repeat('x', 1000000)"),
        ("pg8000", postgresql, POSTGRESQL_ROWS, "select repeat('x', 1000000)"),
    ):
        name = {"pymysql": "PyMySQL"}.get(client, client)
        for what, query, rows in (("20,000 rows", series, 20_000), ("select 1", "select 1", 1), ("1 MB", blob, 1)):
            for tls in (False, True):
                found.append(
                    row(
                        f"{name}{', TLS' if tls else ''}: {what}",
                        f"databases.{client}",
                        1.0,
                        arguments={"query": query, "rows": rows},
                        service=server(tls),
                        module=client,
                    )
                )
    copy = {"query": POSTGRESQL_ROWS, "rows": 20_000}
    found.append(
        row(
            "pg8000: COPY of 20,000 rows",
            "databases.pg8000_copy",
            1.0,
            arguments=copy,
            service=postgresql(tls=False),
            module="pg8000",
        )
    )
    return found


def mail_rows() -> list[Row]:
    return [
        row(
            f"imaplib{', TLS' if tls else ''}: {what}",
            f"mail.{function}",
            1.0,
            arguments=arguments,
            service=dovecot(tls),
        )
        for what, function, arguments in (("NOOP", "noop", {}), ("a mail of 1 MB", "fetch", {"size": MAIL - 72}))
        for tls in (False, True)
    ]

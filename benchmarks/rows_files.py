"""The rows about rioecho.makefile compared with socket.makefile: a body after a line, TLS, text, close, pickle."""

from __future__ import annotations

from measure import Row, Settings
from sides import row

KIB, MIB = 1 << 10, 1 << 20
ASCII = "x" * 63 + "\n"
CYRILLIC = "ж" * 31 + "x\n"  # as many bytes


def with_certificate(settings: Settings) -> dict:
    return {"tls": settings.services.certificate()}


def rows() -> list[Row]:
    return [
        # Reads of more than the socket holds. Unlike smaller ones, they wait for the sender, which the time includes.
        *(row(f"read({n})", "files.body", 1.0, arguments={"size": n, "head": ""}) for n in (256 * KIB, MIB, 17 * MIB)),
        *(
            row(f"a line, then a body of {name}", "files.body", 0.8, arguments={"size": size})
            for name, size in (
                ("64 KiB", 64 * KIB),
                ("300 kB", 300_000),
                ("1 MiB", MIB),
                ("4 MiB", 4 * MIB),
                ("16 MiB", 16 * MIB),
                ("64 MiB", 64 * MIB),
            )
        ),
        *(
            row(f"TCP: a line, then a body of {name}", "files.body", 1.0, arguments={"size": size, "tcp": True})
            for name, size in (("1 MiB", MIB), ("4 MiB", 4 * MIB), ("16 MiB", 16 * MIB))
        ),
        # The same without a file: only the system calls that receive into one piece of memory.
        *(
            row(f"limit: a line, then a body of {name}", "files.body", ours="bare", arguments={"size": size})
            for name, size in (("64 KiB", 64 * KIB), ("300 kB", 300_000), ("1 MiB", MIB), ("16 MiB", 16 * MIB))
        ),
        row('makefile("rb").close()', "files.close", 1.0, arguments={"line": False}),
        row('makefile("rb"), a line, close()', "files.close", arguments={"line": True}),
        row("pickle.load, small objects", "files.unpickle", 1.0),
        *(
            row(f"text: {how}, utf-8, {script}", "files.text", goal, "time", arguments={"line": line, "by": by})
            for how, script, line, by, goal in (
                ("readline()", "ASCII", ASCII, "readline", 0.5),
                ("readline()", "Cyrillic", CYRILLIC, "readline", 0.5),
                ("for line in file", "ASCII", ASCII, "iteration", None),
            )
        ),
        *(
            row(f"noise: {name}, beside itself", f"files.{function}", ours="stdlib", arguments=arguments)
            for name, function, arguments in (
                ("a line there and back", "round_trip", {"mode": "rb"}),
                ("a line, then a body of 1 MiB", "body", {"size": MIB}),
            )
        ),
        row("a line there and back, sendall, readline", "files.round_trip", arguments={"mode": "rb"}),
        *(
            row(f"TLS: {name}", f"files.{function}", 1.0, arguments=arguments, service=with_certificate)
            for name, function, arguments in (
                ("a line there and back, sendall, readline", "round_trip", {"mode": "rb"}),
                ('a line there and back, "rwb"', "round_trip", {"mode": "rwb"}),
                ("read(1 MiB)", "read_over_tls", {"size": MIB}),
            )
        ),
    ]

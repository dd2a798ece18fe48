"""Programs of the system that services need, and their installation by apt."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.services import SEARCH

#: The programs of each service.
PROGRAMS = {
    "MariaDB": ["mariadbd", "mariadb-install-db", "openssl"],
    "PostgreSQL": ["postgres", "initdb", "psql", "openssl"],
    "Dovecot": ["dovecot", "openssl"],
    "Redis": ["redis-server"],
}

#: The Debian package of each program.
PACKAGES = {
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "postgres": "postgresql",
    "initdb": "postgresql",
    "psql": "postgresql-client",
    "dovecot": "dovecot-imapd",
    "redis-server": "redis-server",
    "openssl": "openssl",
}

POLICY = Path("/usr/sbin/policy-rc.d")


def missing(services: Iterable[str]) -> list[str]:
    """Return the programs of some services that are not installed."""
    programs = [program for service in services for program in PROGRAMS[service]]
    return [program for program in dict.fromkeys(programs) if shutil.which(program, path=SEARCH) is None]


def install(programs: Iterable[str]) -> str:
    """Install programs by apt-get and return "", or why that is not possible."""
    names = sorted({PACKAGES[program] for program in programs})
    if not names:
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"only root on Debian can install {' '.join(names)}"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with no_services_started():
        for command in (["update"], ["install", "-y", "--no-install-recommends", *names]):
            done = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
            if done.returncode:
                return f"apt-get {command[0]}: {done.stderr.strip()[-500:]}"
    return ""


@contextlib.contextmanager
def no_services_started() -> Iterator[None]:
    """Let the packages that are installed start no server, as ``policy-rc.d`` of Debian says."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()

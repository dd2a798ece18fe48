"""Servers that suites need: MariaDB, PostgreSQL, Dovecot. Each listens on loopback and keeps its data in one folder.

Most of them refuse to run as root. Started by root, they run as the user ``nobody``.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from software.packages import SEARCH

START = 60.0  # seconds in which a server must accept a connection


class ServiceError(Exception):
    """A server did not start."""


def program(name: str) -> str:
    path = shutil.which(name, path=SEARCH)
    if path is None:
        raise ServiceError(f"{name} is not installed")
    return path


class Service:
    """What the servers have in common: a folder, a user, a free port, a certificate, and their end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"

    def make_certificate(self) -> None:
        self.run(
            *(program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", self.key, "-out", self.certificate),
        )

    def run(self, *command: str | Path, stdin: str = "") -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, input=stdin, cwd=self.folder, capture_output=True, text=True, env=self.environment, **self.identity
        )
        if done.returncode:
            raise ServiceError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": SEARCH, "HOME": str(self.folder), "TMPDIR": str(self.folder), "LC_ALL": "C.UTF-8"}

    @contextlib.contextmanager
    def running(self, *command: str | Path) -> Iterator[None]:
        """Start a server, wait until it accepts connections, and end it at the end."""
        log = self.folder / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                **self.identity,
            )
        try:
            deadline = time.monotonic() + START
            while not self.accepts():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServiceError(f"{command[0]} did not start: {log.read_text(errors='replace')[-500:]}")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@contextlib.contextmanager
def mariadb(folder: Path) -> Iterator[dict[str, str]]:
    """Run MariaDB with two databases, ``test1`` and ``test2``, and a root without a password."""
    service = Service(folder)
    service.make_certificate()
    data, path = folder / "data", folder / "socket"
    service.run(
        *(program("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--skip-test-db"),
        *("--auth-root-authentication-method=normal", f"--tmpdir={folder}"),
    )
    server = [
        *(program("mariadbd"), "--no-defaults", f"--datadir={data}", f"--tmpdir={folder}", f"--socket={path}"),
        *(f"--port={service.port}", "--bind-address=127.0.0.1", f"--pid-file={folder / 'pid'}", "--local-infile=1"),
        *(f"--ssl-cert={service.certificate}", f"--ssl-key={service.key}", "--character-set-server=utf8mb4"),
        *("--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--max-allowed-packet=64M"),
    ]
    with service.running(*server):
        client = [program("mariadb"), "--no-defaults", "--user=root", f"--socket={path}"]
        service.run(*client, stdin="create database test1; create database test2;")
        yield {
            "MARIADB_PORT": str(service.port),
            "MARIADB_SOCKET": str(path),
            "MARIADB_CERTIFICATE": str(service.certificate),
        }


#: The databases for which pg8000's tests require a method of authentication.
HBA = """
host  pg8000_md5           all 127.0.0.1/32 md5
host  pg8000_md5_ssl       all 127.0.0.1/32 md5
host  pg8000_password      all 127.0.0.1/32 password
host  pg8000_gss           all 127.0.0.1/32 gss
host  pg8000_scram_sha_256 all 127.0.0.1/32 scram-sha-256
host  all                  all 127.0.0.1/32 scram-sha-256
local all                  all              trust
"""


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[dict[str, str]]:
    """Run PostgreSQL with TLS and the user ``postgres``, whose password is ``pw``."""
    service = Service(folder)
    service.make_certificate()
    data, password = folder / "data", folder / "password"
    password.write_text("pw\n")
    password.chmod(0o644)
    service.run(program("initdb"), "-D", data, "-U", "postgres", f"--pwfile={password}", "--no-sync", "-E", "UTF8")
    (data / "pg_hba.conf").write_text(HBA)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": service.port,
        "unix_socket_directories": folder,
        "ssl": "on",
        "ssl_cert_file": service.certificate,
        "ssl_key_file": service.key,
        "fsync": "off",
        "max_prepared_transactions": 10,
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    with service.running(program("postgres"), "-D", data, *options):
        client = [program("psql"), "-h", str(folder), "-p", str(service.port), "-U", "postgres", "-q", "-c"]
        service.run(*client, "create extension hstore")
        yield {"PGHOST": "127.0.0.1", "PGPORT": str(service.port), "PGPASSWORD": "pw", "PGUSER": "postgres"}


DOVECOT = """
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/dovecot.log
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
protocols = imap
listen = 127.0.0.1
mail_location = maildir:{folder}/mail
mail_uid = {user}
mail_gid = {group}
first_valid_uid = 1
first_valid_gid = 1
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{key}
disable_plaintext_auth = no
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
  }}
}}
service anvil {{
  chroot =
}}
passdb {{
  driver = static
  args = password=pw
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={folder}/mail
}}
"""


@contextlib.contextmanager
def dovecot(folder: Path) -> Iterator[dict[str, str]]:
    """Run Dovecot with IMAP, plain and with TLS, for any user with the password ``pw``."""
    service = Service(folder)
    service.make_certificate()
    tls_port = free_port()
    user = pwd.getpwuid(service.identity.get("user", os.geteuid()))
    group = os.stat(folder).st_gid
    (folder / "run").mkdir()
    (folder / "mail").mkdir()
    if service.identity:
        for name in ("run", "mail"):
            os.chown(folder / name, service.identity["user"], service.identity["group"])
    config = folder / "dovecot.conf"
    config.write_text(
        DOVECOT.format(
            folder=folder,
            user=user.pw_name,
            group=grp.getgrgid(group).gr_name,
            port=service.port,
            tls_port=tls_port,
            certificate=service.certificate,
            key=service.key,
        )
    )
    with service.running(program("dovecot"), "-F", "-c", config):
        yield {
            "IMAP_PORT": str(service.port),
            "IMAPS_PORT": str(tls_port),
            "IMAP_CERTIFICATE": str(service.certificate),
        }


SERVICES = {"MariaDB": mariadb, "PostgreSQL": postgresql, "Dovecot": dovecot}


@contextlib.contextmanager
def started(name: str) -> Iterator[dict[str, str]]:
    """Run a service in a temporary folder that its user can reach. Yield the variables that tell a suite of it."""
    with (
        tempfile.TemporaryDirectory(prefix="rioecho-", ignore_cleanup_errors=True) as folder,
        SERVICES[name](Path(folder)) as variables,
    ):
        yield variables


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

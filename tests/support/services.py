"""Start and stop servers of other projects: MariaDB, PostgreSQL, Dovecot, Redis, and a program that serves HTTP.

The suites of tests/software and the benchmarks talk to them. They listen on free ports of the loopback interface, keep
their files in a temporary directory, and run as the user "nobody" if this process is root's, whom they refuse.

This module needs nothing but the standard library: its users may run before the package is built.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import certificates

TIMEOUT = 60  # seconds in which a server must start, or stop
ATTEMPTS = 5  # another program may take a free port first
MAIL = 1 << 20  # bytes of the mail in Dovecot's mailboxes
PASSWORD = "pw"  # of PostgreSQL's user "postgres", and of Dovecot's users, who may have any name  # noqa: S105

#: Where programs are looked for. Debian keeps those of servers off the PATH of users, PostgreSQL's by version.
SEARCH = os.pathsep.join(
    [
        os.environ.get("PATH", os.defpath),
        *("/usr/sbin", "/sbin"),
        *sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: path.split("/")[4].zfill(4), reverse=True),
    ]
)


class NotInstalledError(Exception):
    """A program is not installed."""


class ServiceError(Exception):
    """A server did not start."""


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    tls_port: int = 0  # of a server that has another one for TLS
    socket: str = ""  # the path of its unix socket, if it has one
    sentinels: tuple[int, ...] = ()  # the ports of those that watch it


class Services:
    """The servers that run. Each is started when it is first asked for; leaving the ``with`` block stops them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._known: dict[str, Any] = {}

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @functools.cached_property
    def folder(self) -> Path:
        """The directory of the servers' files, which they own."""
        temporary = tempfile.TemporaryDirectory(prefix="rioecho-", ignore_cleanup_errors=True)
        folder = Path(self._stack.enter_context(temporary))
        _give_away(folder)
        return folder

    def certificate(self) -> tuple[str, str]:
        """Return the paths of the servers' certificate, for localhost and 127.0.0.1, and of its key."""
        return self._once("certificate", lambda: certificate(self.folder))

    def http(self, script: Path) -> Server:
        return self._server("http", lambda folder: http(folder, script))

    def https(self, script: Path) -> Server:
        return self._server("https", lambda folder: http(folder, script, *self.certificate()))

    def mariadb(self) -> Server:
        return self._server("mariadb", lambda folder: mariadb(folder, *self.certificate()))

    def postgresql(self) -> Server:
        return self._server("postgresql", lambda folder: postgresql(folder, *self.certificate()))

    def dovecot(self) -> Server:
        return self._server("dovecot", lambda folder: dovecot(folder, *self.certificate()))

    def redis(self) -> Server:
        return self._server("redis", redis)

    def sentinels(self) -> Server:
        return self._server("sentinels", sentinels)

    def _server(self, name: str, start: Callable[[Path], AbstractContextManager[Server]]) -> Server:
        def begin() -> Server:
            folder = self.folder / name
            folder.mkdir()
            _give_away(folder)
            return self._stack.enter_context(start(folder))

        return self._once(name, begin)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what ``make`` has returned for this name, or raise what it has raised."""
        if name not in self._known:
            try:
                self._known[name] = make()
            except (NotInstalledError, ServiceError, OSError, subprocess.SubprocessError) as error:
                self._known[name] = error
        if isinstance(self._known[name], Exception):
            raise self._known[name]
        return self._known[name]


def certificate(folder: Path) -> tuple[str, str]:
    cert, key = certificates.make(folder, program("openssl"))
    _give_away(key)
    return str(cert), str(key)


@contextmanager
def http(folder: Path, script: Path, *cert_and_key: str) -> Iterator[Server]:
    """Run a Python script that prints "listening on HOST:PORT"; with a certificate as its arguments, over TLS."""
    log = folder / "log"
    command = [sys.executable, "-P", script, *cert_and_key]
    # As this user, because others may have no access to the interpreter.
    with log.open("w") as output, _running(command, folder, log, "listening on", {}, stdout=output):
        yield Server(int(log.read_text().split("\n")[0].rpartition(":")[2]))


@contextmanager
def mariadb(folder: Path, cert: str, key: str) -> Iterator[Server]:
    """Run MariaDB with the empty databases ``test1`` and ``test2``, and a root who needs no password."""
    server, install = program("mariadbd"), program("mariadb-install-db")
    # Without --no-defaults it would read the configuration of the machine's own server.
    options = ["--no-defaults", f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
    _run(folder, install, *options, "--auth-root-authentication-method=normal", "--skip-test-db")
    init, path = folder / "init.sql", folder / "socket"
    init.write_text("create database test1;\ncreate database test2;\n")  # a statement per line
    options += [f"--socket={path}", f"--pid-file={folder / 'pid'}", f"--init-file={init}", "--bind-address=127.0.0.1"]
    options += [f"--ssl-cert={cert}", f"--ssl-key={key}", "--character-set-server=utf8mb4", "--local-infile=1"]
    options += ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--max-allowed-packet=64M"]

    def command(port: int) -> list[str]:
        return [server, *options, f"--port={port}"]

    with _on_free_ports(command, 1, folder, "ready for connections") as (port,):
        yield Server(port, socket=str(path))


#: The databases for which pg8000's tests require a method of authentication.
ACCESS = """
host  pg8000_md5           all 127.0.0.1/32 md5
host  pg8000_md5_ssl       all 127.0.0.1/32 md5
host  pg8000_password      all 127.0.0.1/32 password
host  pg8000_gss           all 127.0.0.1/32 gss
host  pg8000_scram_sha_256 all 127.0.0.1/32 scram-sha-256
host  all                  all 127.0.0.1/32 scram-sha-256
local all                  all              trust
"""


@contextmanager
def postgresql(folder: Path, cert: str, key: str) -> Iterator[Server]:
    """Run PostgreSQL with TLS, the extension hstore and the user ``postgres``, who has the password."""
    # The programs of one version, also where the PATH leads to it by a link.
    programs = Path(program("postgres")).resolve().parent
    data, password = folder / "data", folder / "password"
    password.write_text(f"{PASSWORD}\n")
    _give_away(password)
    initdb = [programs / "initdb", "-D", data, "-U", "postgres", f"--pwfile={password}", "--no-sync"]
    _run(folder, *initdb, "--locale=C", "-E", "UTF8")
    (data / "pg_hba.conf").write_text(ACCESS)
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": folder,
        "fsync": "off",
        "max_prepared_transactions": 10,
        "ssl": "on",
        "ssl_cert_file": cert,
        "ssl_key_file": key,
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def command(port: int) -> list[str]:
        return [str(programs / "postgres"), "-D", str(data), *options, "-c", f"port={port}"]

    # By SIGTERM it would wait for its clients.
    with _on_free_ports(command, 1, folder, "ready to accept connections", stop=signal.SIGINT) as (port,):
        client = [programs / "psql", "-X", "-h", str(folder), "-p", str(port), "-U", "postgres", "-q", "-c"]
        _run(folder, *client, "create extension hstore")
        yield Server(port)


DOVECOT = """
base_dir = {folder}/run
state_dir = {folder}/state
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
first_valid_gid = 1
log_path = /dev/stderr
protocols = imap
listen = 127.0.0.1
mail_location = maildir:{folder}/mail
ssl = yes
ssl_cert = <{cert}
ssl_key = <{key}
disable_plaintext_auth = no
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={folder}
}}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {ports[0]}
  }}
  inet_listener imaps {{
    port = {ports[1]}
    ssl = yes
  }}
}}
"""


@contextmanager
def dovecot(folder: Path, cert: str, key: str) -> Iterator[Server]:
    """Run Dovecot with IMAP for users of any name, who share one mailbox with one mail of MAIL bytes."""
    server = program("dovecot")
    config = folder / "dovecot.conf"
    user = pwd.getpwuid(_user().get("user", os.geteuid()))
    inbox = folder / "mail" / "cur"
    inbox.mkdir(parents=True)
    (inbox / "1:2,S").write_bytes(b"Subject: long\r\n\r\n" + (b"x" * 70 + b"\r\n") * (MAIL // 72))
    for path in (inbox.parent, inbox, inbox / "1:2,S"):
        _give_away(path)
    values = {"folder": folder, "user": user.pw_name, "group": grp.getgrgid(user.pw_gid).gr_name}

    def command(*ports: int) -> list[str]:
        config.write_text(DOVECOT.format(**values, cert=cert, key=key, password=PASSWORD, ports=ports))
        return [server, "-F", "-c", str(config)]

    with _on_free_ports(command, 2, folder, "starting up for imap") as (port, tls_port):
        yield Server(port, tls_port)


REDIS_PORT = 6379  # to which some tests of redis-py connect, whatever their options say


@contextmanager
def redis(folder: Path) -> Iterator[Server]:
    """Run Redis, on its usual port if that is free, with its debugging commands and without files."""
    to_stderr = ["sh", "-c", 'exec "$@" >&2', "sh", program("redis-server")]  # its log, for which it has no option

    def command(port: int) -> list[str]:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
        return [*to_stderr, *options, "--enable-debug-command", "local"]

    with _on_free_ports(command, 1, folder, "Ready to accept connections", usual=REDIS_PORT) as (port,):
        yield Server(port)


@contextmanager
def sentinels(folder: Path) -> Iterator[Server]:
    """Run two sentinels of Redis and the master "redis-py-test" that they watch, a Redis of its own.

    They would be clients of the other one, whose clients are counted by tests.
    """
    to_stderr = ["sh", "-c", 'exec "$@" >&2', "sh", program("redis-server")]
    logs = [folder / name for name in ("master", "first", "second")]
    for log in logs:
        log.mkdir()
        _give_away(log)

    def master(port: int) -> list[str]:
        return [*to_stderr, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(logs[0]), "--save", ""]

    def sentinel(home: Path, watched: int, port: int) -> list[str]:
        configuration = home / "sentinel.conf"
        configuration.write_text(f"bind 127.0.0.1\nport {port}\nsentinel monitor redis-py-test 127.0.0.1 {watched} 1\n")
        _give_away(configuration)  # it is written to
        return [*to_stderr, str(configuration), "--sentinel"]

    with ExitStack() as stack:
        (watched,) = stack.enter_context(_on_free_ports(master, 1, logs[0], "Ready to accept connections"))
        commands = [(functools.partial(sentinel, home, watched), home) for home in logs[1:]]
        ports = [stack.enter_context(_on_free_ports(run, 1, home, "+monitor master"))[0] for run, home in commands]
        yield Server(watched, sentinels=tuple(ports))


def program(name: str) -> str:
    """Return the path of a program."""
    found = shutil.which(name, path=SEARCH)
    if found is None:
        raise NotInstalledError(f"{name} is not installed")
    return found


def _user() -> dict[str, Any]:
    """Return the options of subprocess for a user other than root, whom servers refuse."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give_away(path: Path) -> None:
    user = _user()
    if user:
        os.chown(path, user["user"], user["group"])


def _environment(folder: Path) -> dict[str, str]:
    """Return the variables of a server: none that an administrator may have set for the machine's own."""
    return {"PATH": SEARCH, "HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}


def _run(folder: Path, *command: str | Path) -> None:
    """Run a program that prepares a server, as the server's user."""
    options: dict[str, Any] = {"cwd": folder, "env": _environment(folder), **_user()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, **options)
    if done.returncode:
        raise ServiceError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")


@contextmanager
def _on_free_ports(
    command: Callable[..., list[str]],
    count: int,
    folder: Path,
    sign: str,
    stop: int = signal.SIGTERM,
    usual: int = 0,
) -> Iterator[list[int]]:
    """Run a server on ``count`` free ports, the first one ``usual`` if that is free.

    Retry if another program takes one of them first.
    """
    log = folder / "log"
    options = {"env": _environment(folder), **_user()}
    for attempt in range(1, ATTEMPTS + 1):
        log.unlink(missing_ok=True)
        ports = _free_ports(count, usual if attempt == 1 else 0)
        with ExitStack() as stack:
            try:
                stack.enter_context(_running(command(*ports), folder, log, sign, options, stop))
            except ServiceError:
                if attempt == ATTEMPTS or "ddress already in use" not in log.read_text(errors="replace"):
                    raise
                continue
            yield ports
            return


def _free_ports(count: int, usual: int = 0) -> list[int]:
    with ExitStack() as stack:
        socks = []
        if usual:
            with contextlib.suppress(OSError):
                socks.append(stack.enter_context(socket.create_server(("127.0.0.1", usual))))
        socks += [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count - len(socks))]
        return [sock.getsockname()[1] for sock in socks]


@contextmanager
def _running(
    command: list,
    folder: Path,
    log: Path,
    sign: str,
    options: dict[str, Any],
    stop: int = signal.SIGTERM,
    stdout: Any = subprocess.DEVNULL,
) -> Iterator[None]:
    """Run a server until the end of the block, which begins when the server has logged ``sign``."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": stdout}
    process = None
    try:
        with log.open("a") as errors, _uninterrupted():
            process = subprocess.Popen(command, cwd=folder, start_new_session=True, stderr=errors, **streams, **options)
        _wait_for(sign, log, process)
        yield
    finally:
        if process:
            process.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TIMEOUT)
            with contextlib.suppress(ProcessLookupError):  # what is left of its process group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Postpone SIGINT and SIGTERM to the end of the block. An exception in Popen would leave a process behind."""
    postponed: list[int] = []
    handlers = {
        signum: signal.signal(signum, lambda signum, frame: postponed.append(signum))
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for signum in postponed:
            signal.raise_signal(signum)


def _wait_for(sign: str, log: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + TIMEOUT
    while sign not in (text := log.read_text(errors="replace")):
        if process.poll() is not None:
            last = (text.strip().splitlines() or ["nothing"])[-1]
            raise ServiceError(f"{process.args[0]} failed with status {process.returncode}; it logged: {last}")
        if time.monotonic() > end:
            raise ServiceError(f"{process.args[0]} does not start within {TIMEOUT} seconds: {text[-500:]}")
        time.sleep(0.01)

"""Start and stop the servers of other projects that the rows of rows_software.py need.

They listen on free ports of the loopback interface, keep their files in a temporary directory, and run as the user
"nobody" if this process is root's. A server is started for the first row that needs it and stopped at the end of the
run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from measure import Skipped
from processes import PEERS

TIMEOUT = 60  # seconds in which a server must start, or stop
ATTEMPTS = 5  # another program may take a free port first
MAIL = 1 << 20  # bytes of the mail in the mailbox

#: A statement per line.
MARIADB = """\
create database bench;
create user bench;
grant all on *.* to bench with grant option;
"""

CERTIFICATE = """
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = localhost
[extensions]
basicConstraints = critical, CA:true
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


class Services:
    """The servers that run. Leaving the ``with`` block stops them."""

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
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        _give_away(folder)
        return folder

    def certificate(self) -> tuple[str, str]:
        """Return the paths of a self-signed certificate for localhost and 127.0.0.1, and of its key."""
        return self._once("certificate", lambda: certificate(self.folder))

    def http(self) -> dict[str, int]:
        return self._server("http", http)

    def https(self) -> dict[str, int]:
        return self._server("https", lambda folder: http(folder, *self.certificate()))

    def mariadb(self) -> dict[str, int]:
        return self._server("mariadb", mariadb, tls=True)

    def postgresql(self) -> dict[str, int]:
        return self._server("postgresql", postgresql, tls=True)

    def dovecot(self) -> dict[str, int]:
        return self._server("dovecot", dovecot, tls=True)

    def _server(self, name: str, start: Callable[..., AbstractContextManager], tls: bool = False) -> dict[str, int]:
        def begin() -> dict[str, int]:
            folder = self.folder / name
            folder.mkdir()
            _give_away(folder)
            return self._stack.enter_context(start(folder, *(self.certificate() if tls else ())))

        return self._once(name, begin)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what ``make`` has returned for this name, or raise what it has raised."""
        if name not in self._known:
            try:
                self._known[name] = make()
            except (Skipped, RuntimeError, OSError, subprocess.CalledProcessError) as error:
                self._known[name] = error
        if isinstance(self._known[name], Exception):
            raise self._known[name]
        return self._known[name]


def certificate(folder: Path) -> tuple[str, str]:
    openssl = program("openssl")
    config, key, cert = folder / "openssl.cnf", folder / "key.pem", folder / "certificate.pem"
    config.write_text(CERTIFICATE)
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", config]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=TIMEOUT)
    key.chmod(0o600)
    _give_away(key)
    return str(cert), str(key)


@contextmanager
def http(folder: Path, *cert_and_key: str) -> Iterator[dict[str, int]]:
    """Run the HTTP server of ``peers``, with a certificate over TLS."""
    log = folder / "log"
    command = [sys.executable, "-P", PEERS / "http_server.py", *cert_and_key]
    # As this user, because others may have no access to the interpreter.
    with log.open("w") as output, _running(command, folder, log, "listening on", {}, stdout=output):
        yield {"port": int(log.read_text().split("\n")[0].rpartition(":")[2])}


@contextmanager
def mariadb(folder: Path, cert: str, key: str) -> Iterator[dict[str, int]]:
    """Run MariaDB with an empty database "bench" and a user "bench", who may do anything and needs no password."""
    server, install = program("mariadbd"), program("mariadb-install-db")
    data = folder / "data"
    # Without --no-defaults it would read the configuration of the machine's own server.
    options = ["--no-defaults", f"--datadir={data}", f"--tmpdir={folder}", "--skip-name-resolve"]
    install_db = [install, *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(install_db, check=True, capture_output=True, timeout=TIMEOUT, cwd=folder, **_user())
    init = folder / "init.sql"
    init.write_text(MARIADB)

    def command(port: int) -> list[str]:
        return [
            server,
            *options,
            f"--socket={folder}/socket",
            f"--pid-file={folder}/pid",
            f"--init-file={init}",
            "--bind-address=127.0.0.1",
            f"--port={port}",
            f"--ssl-cert={cert}",
            f"--ssl-key={key}",
        ]

    with _on_free_ports(command, 1, folder, "ready for connections") as (port,):
        yield {"port": port}


@contextmanager
def postgresql(folder: Path, cert: str, key: str) -> Iterator[dict[str, int]]:
    """Run PostgreSQL with a user "bench", who needs no password."""
    # Debian keeps the programs of each version in a directory of its own, out of the PATH.
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4))
    server = Path(program("postgres", *places[::-1])).resolve()
    data = folder / "data"
    initdb = [server.parent / "initdb", "--no-sync", "-A", "trust", "-U", "bench", "--locale=C", "-E", "UTF8", data]
    subprocess.run(initdb, check=True, capture_output=True, timeout=TIMEOUT, cwd=folder, **_user())

    def command(port: int) -> list[str]:
        options = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": folder,
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": cert,
            "ssl_key_file": key,
        }
        return [
            str(server),
            "-D",
            str(data),
            *(word for item in options.items() for word in ("-c", "{}={}".format(*item))),
        ]

    # By SIGTERM it would wait for its clients.
    with _on_free_ports(command, 1, folder, "ready to accept connections", stop=signal.SIGINT) as (port,):
        yield {"port": port}


DOVECOT = """
base_dir = {folder}/run
state_dir = {folder}/state
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
log_path = /dev/stderr
protocols = imap
listen = 127.0.0.1
mail_location = maildir:{folder}/mail
ssl = yes
ssl_cert = <{cert}
ssl_key = <{key}
passdb {{
  driver = static
  args = password=bench
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
def dovecot(folder: Path, cert: str, key: str) -> Iterator[dict[str, int]]:
    """Run Dovecot with a mailbox of the user "bench" that has one mail; the password is "bench"."""
    import grp
    import pwd

    server = program("dovecot", Path("/usr/sbin"))
    config = folder / "dovecot.conf"
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    group = grp.getgrgid(user.pw_gid)
    inbox = folder / "mail" / "cur"
    inbox.mkdir(parents=True)
    (inbox / "1:2,S").write_bytes(b"Subject: long\r\n\r\n" + (b"x" * 70 + b"\r\n") * (MAIL // 72))
    for path in (inbox.parent, inbox, inbox / "1:2,S"):
        _give_away(path)

    def command(*ports: int) -> list[str]:
        config.write_text(
            DOVECOT.format(folder=folder, user=user.pw_name, group=group.gr_name, cert=cert, key=key, ports=ports)
        )
        return [server, "-F", "-c", str(config)]

    with _on_free_ports(command, 2, folder, "starting up for imap") as (port, tls_port):
        yield {"port": port, "tls_port": tls_port}


def program(name: str, *places: Path) -> str:
    """Return the path of a program in the PATH or in one of the directories."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, places), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise Skipped(f"{name} is not installed")
    return found


def _user() -> dict[str, Any]:
    """Return the options of subprocess for a user other than root, whom servers refuse."""
    if os.getuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give_away(path: Path) -> None:
    user = _user()
    if user:
        os.chown(path, user["user"], user["group"])


@contextmanager
def _on_free_ports(
    command: Callable[..., list[str]], count: int, folder: Path, sign: str, stop: int = signal.SIGTERM
) -> Iterator[list[int]]:
    """Run a server on ``count`` free ports; retry if another program takes one of them first."""
    log = folder / "log"
    for attempt in range(1, ATTEMPTS + 1):
        ports = _free_ports(count)
        with ExitStack() as stack:
            try:
                stack.enter_context(_running(command(*ports), folder, log, sign, _user(), stop))
            except RuntimeError:
                if attempt == ATTEMPTS or "ddress already in use" not in log.read_text(errors="replace"):
                    raise
                continue
            yield ports
            return


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


@contextmanager
def _running(
    command: list,
    folder: Path,
    log: Path,
    sign: str,
    user: dict[str, Any],
    stop: int = signal.SIGTERM,
    stdout: Any = subprocess.DEVNULL,
) -> Iterator[None]:
    """Run a server until the end of the block, which begins when the server has logged ``sign``."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": stdout}
    process = None
    try:
        with log.open("a") as errors, _uninterrupted():
            process = subprocess.Popen(command, cwd=folder, start_new_session=True, stderr=errors, **streams, **user)
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
            raise RuntimeError(f"{process.args[0]} failed with status {process.returncode}; it logged: {last}")
        if time.monotonic() > end:
            raise RuntimeError(f"{process.args[0]} does not start within {TIMEOUT} seconds: {text[-500:]}")
        time.sleep(0.01)

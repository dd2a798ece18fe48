"""Run the tests of network software with the standard library's files or streams and with rioecho's, and compare.

Each NAME of the catalogue is installed from the registry in a virtual environment of its own, together with this
checkout. Its tests run twice, and those whose outcome differs once more. Exit status: 0, 1 if a test passes with the
standard library's files alone or a comparison shows nothing, 2 for a wrong command line. Software whose server is not
installed, or whose archive cannot be had because the registry cannot be reached, is skipped and named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import string
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from software import packages
from software.catalogue import CATALOGUE, Software
from software.environments import Environment, PipError, RegistryError, build_wheel
from software.suites import Comparison, Runner, compare, name_of, plain_name
from support.services import PASSWORD, NotInstalledError, ServiceError, Services

FOLDER = Path(__file__).parent


class Skipped(Exception):
    """Software that cannot run on this machine; the message is the reason."""


def mariadb(services: Services) -> dict[str, str]:
    """Start MariaDB and return the variables that tell a suite of it."""
    server = services.mariadb()
    certificate, _ = services.certificate()
    return {
        "MARIADB_PORT": str(server.port),
        "MARIADB_SOCKET": server.socket,
        "MARIADB_CERTIFICATE": certificate,
    }


def postgresql(services: Services) -> dict[str, str]:
    server = services.postgresql()
    return {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGPASSWORD": PASSWORD, "PGUSER": "postgres"}


def dovecot(services: Services) -> dict[str, str]:
    server = services.dovecot()
    certificate, _ = services.certificate()
    return {"IMAP_PORT": str(server.port), "IMAPS_PORT": str(server.tls_port), "IMAP_CERTIFICATE": certificate}


def redis(services: Services) -> dict[str, str]:
    sentinels = ",".join(f"localhost:{port}" for port in services.sentinels().sentinels)
    return {"REDIS_PORT": str(services.redis().port), "REDIS_SENTINELS": sentinels}


START = {"MariaDB": mariadb, "PostgreSQL": postgresql, "Dovecot": dovecot, "Redis": redis}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tests/software/run.py", description=__doc__)
    option = p.add_argument
    option("names", metavar="NAME", nargs="*", help="software to run (all)")
    option("--list", action="store_true", help="print the catalogue")
    option("--quick", action="store_true", help="run only what needs no server, two minutes after the build")
    option("--install-services", action="store_true", help="as root, install missing servers by apt-get")
    option("--wheel", metavar="FILE", type=Path, help="a wheel of rioecho to install (built from this checkout)")
    option("--keep", metavar="DIR", type=Path, help="keep environments, sources and logs in this new directory")
    return p


def chosen(arguments: argparse.Namespace, p: argparse.ArgumentParser) -> list[Software]:
    by_name = {software.name.lower(): software for software in CATALOGUE}
    unknown = [name for name in arguments.names if name.lower() not in by_name]
    if unknown:
        p.error(f"no software {', '.join(unknown)}; --list prints the names")
    named = [by_name[name.lower()] for name in arguments.names] or CATALOGUE
    return [software for software in named if software.quick or not arguments.quick]


def run_one(software: Software, folder: Path, wheel: Path, *, quick: bool = False) -> Comparison:
    """Install software in ``folder``, start its services, and run its tests with both kinds of files."""
    missing = packages.missing(software.services)
    if missing:
        raise Skipped(f"{', '.join(missing)} not installed (--install-services)")
    folder.mkdir()
    environment = Environment(folder / "environment")
    with contextlib.ExitStack() as stack:
        sources, tests = prepare(software, software.quick if quick else software.tests, environment, folder)
        environment.install(wheel, software.pytest, *software.requirements)
        variables = {**software.variables, "RIOECHO_DROP_IN": software.drop_in}
        services = stack.enter_context(Services())
        for service in software.services:
            variables |= START[service](services)
        for name, text in software.configuration.items():
            (sources / name).write_text(string.Template(text).substitute(variables))
        logs = folder / "logs"
        logs.mkdir()
        tests = [string.Template(each).safe_substitute(variables) for each in tests]
        runner = Runner(environment.python, sources, tests, logs, 120 + 10 * software.seconds, variables)
        result = compare(runner, software.unsteady)
    result.accept(software.wanted)
    return result


def prepare(
    software: Software, tests: Sequence[str], environment: Environment, folder: Path
) -> tuple[Path, Sequence[str]]:
    """Install the software itself. Return the directory in which its tests run, and pytest's arguments."""
    if software.session or software.package == "python":
        if software.package != "python":
            environment.install(f"{software.package}=={software.version}")
        sources = folder / "session"
        sources.mkdir()
    else:
        sources = environment.download(software.package or software.name, software.version, folder / "sources")
        environment.install(sources)
    if software.session:
        shutil.copy(FOLDER / "sessions" / software.session, sources / f"test_{software.session}")
        return sources, ["."]
    if software.package == "python":
        # The ids of the tests contain their paths below the root. In a virtual machine a VSOCK may wait for ever.
        library = Path(os.__file__).parent
        return sources, [f"--rootdir={library}", "-k", "not VSOCK", "--pyargs", *stdlib_modules(tests)]
    return sources, tests


def stdlib_modules(names: Sequence[str]) -> list[str]:
    """Return the modules of the package ``test`` that the running interpreter has."""
    if find_spec("test") is None or find_spec("test.support") is None:
        raise Skipped(f"{sys.executable} has no package test")
    return [f"test.{name}" for name in names if find_spec(f"test.{name}")]


ROW = "{:<16} {:<8} {:<38} {:<38} {:>6} {:>5} {:>5}  {}"
KINDS = ("broken", "wanted", "mended", "unsteady")


def row(software: Software, result: Comparison) -> str:
    counts = [f"{len(getattr(result, kind))} {kind}" for kind in KINDS if getattr(result, kind)]
    return ROW.format(
        software.name,
        software.version or platform.python_version(),
        str(result.stock),
        str(result.swapped),
        result.stock.files,
        f"{result.stock.seconds + result.swapped.seconds:.0f}",
        f"{result.cpu_ratio:.2f}",
        faults(software, result) or ", ".join(counts) or "none",
    )


def print_list() -> None:
    for software in CATALOGUE:
        notes = [*software.services, *(["quick"] if software.quick else [])]
        print(f"{software.name:<16} {software.version or platform.python_version():<8} {', '.join(notes)}")


def main() -> int:
    p = parser()
    arguments = p.parse_args()
    software = chosen(arguments, p)
    if arguments.list:
        print_list()
        return 0
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # end the servers then too
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rioecho-software-")))
        return run_all(software, folder.resolve(), arguments)


def run_all(chosen: Sequence[Software], folder: Path, arguments: argparse.Namespace) -> int:
    """Run software, one after the other, print the table and the tests that differ, and return the exit status."""
    if arguments.install_services:
        note = packages.install(packages.missing(service for each in chosen for service in each.services))
        if note:
            print(f"note: {note}")
    try:
        wheel = arguments.wheel.resolve() if arguments.wheel else build_wheel(folder / "wheel")
    except RegistryError as error:
        print(f"skipped: {', '.join(each.name for each in chosen)}: {error}")
        return 0
    except PipError as error:
        print(f"this checkout cannot be built: {error}", file=sys.stderr)
        return 1
    details, failed = [], False
    print(ROW.format("", "", "stock", "rioecho", "files", "s", "CPU", "difference"), flush=True)
    for each in chosen:
        try:
            result = run_one(each, folder / each.name, wheel, quick=arguments.quick)
        except (Skipped, NotInstalledError, RegistryError) as error:
            print(f"{each.name:<16} skipped: {error}", flush=True)
        except (PipError, ServiceError) as error:
            failed = True
            print(f"{each.name:<16} failed: {error}", flush=True)
        else:
            print(row(each, result), flush=True)
            details += [f"{each.name}: {line}" for line in explained(each, result)]
            failed = failed or bool(result.broken or faults(each, result))
    for line in details:
        print(line)
    return int(failed)


def faults(software: Software, result: Comparison) -> str:
    """Say what is wrong with the comparison itself, or ""."""
    if software.session and result.stock.count("failed"):
        return "the session fails with the standard library's files"
    return result.nothing_shown


def explained(software: Software, result: Comparison) -> list[str]:
    """Return the tests that differ, and the end of the log of a comparison that shows nothing."""
    lines = []
    for kind in KINDS:
        reasons = {"wanted": software.wanted, "unsteady": software.unsteady}.get(kind, {})
        for test in getattr(result, kind):
            reason = reasons.get(name_of(test))
            lines.append(f"{kind}: {test}" + (f": {reason}" if reason else ""))
    for name in sorted({plain_name(test) for test in result.failing}):
        lines.append(f"fails with both: {name}: {software.failing.get(name, 'the reason is not known')}")
    fault = faults(software, result)
    if fault:
        end = result.stock.log.read_text(errors="replace").splitlines()[-30:]
        lines.append("\n".join([fault, *end]))
    return lines

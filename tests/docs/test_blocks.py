"""Every block of code of the documentation runs as written, and prints what it says.

A page is read as text. Its blocks are, by their language:

- ``python``: a program. What its calls ``print(...)  # text`` print is the text of their comments. With ``:class:
  continued`` it goes on where the block before it on the page ended.
- ``console``: a session of a shell, in a folder and a network of its own. Lines that begin with ``$`` are commands; the
  lines below are what they print, where ``...`` stands for any text. The next command is given when that is printed.
- ``text``: nothing that runs.

Files of other languages are included from files that other tests use, by ``literalinclude``.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from rioecho import Rio
from support.namespaces import inside

COMMANDS = Path(sys.executable).parent
DOCS = Path(__file__).parents[2] / "docs"
LANGUAGES = ("python", "console", "text")
BLOCK = re.compile(r"^\.\. code-block:: *(\S*)\n((?:   +:.*\n)*)\n((?:(?:   .*)?\n)+)", re.MULTILINE)


@dataclass
class Block:
    """A block of code: its page, the number of its first line, its language, whether it is continued, its code."""

    page: str
    line: int
    language: str
    continued: bool
    code: str


def blocks_of(path):
    text = path.read_text() + "\n"
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        code = textwrap.dedent(match[3]).strip("\n") + "\n"
        yield Block(path.relative_to(DOCS).as_posix(), line, match[1], "continued" in match[2], code)


PAGES = sorted(DOCS.rglob("*.rst"))
BLOCKS = [block for path in PAGES for block in blocks_of(path)]


def ids(blocks):
    return [f"{block.page}:{block.line}" for block in blocks]


def programs():
    """Return the last block of each program, with the code of those that it continues in front."""
    found = []
    for block in BLOCKS:
        if block.language != "python":
            continue
        if block.continued:
            before = found.pop()
            assert before.page == block.page, f"{block.page}:{block.line} continues nothing"
            block = Block(block.page, before.line, "python", False, before.code + block.code)
        found.append(block)
    return found


PROGRAMS = programs()
SESSIONS = [block for block in BLOCKS if block.language == "console"]


def test_every_block_is_of_a_language_that_is_run():
    assert all(block.language in LANGUAGES for block in BLOCKS), {b.language for b in BLOCKS} - {*LANGUAGES}
    assert sum(path.read_text().count(".. code-block::") for path in PAGES) == len(BLOCKS)
    assert PROGRAMS
    assert SESSIONS


@pytest.mark.long
@pytest.mark.parametrize("block", PROGRAMS, ids=ids(PROGRAMS))
def test_a_program_prints_what_its_comments_say(block, child):
    expected = [comment.split(": ")[0] for comment in re.findall(r"print\(.*\)  # (.*)", block.code)]
    printed = child(block.code).splitlines()
    assert not expected or printed == expected


class Shell:
    """A shell whose output is read command by command."""

    def __init__(self, folder):
        environment = os.environ | {"PATH": f"{COMMANDS}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", inside("ip link set lo up", network=True), "sh", "bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        self.output = Rio(self.process.stdout.fileno(), timeout=30)

    def run(self, command, shown):
        """Run a command and return its output; of one in the background, as many lines as are shown."""
        self.process.stdin.write(f"{command}\n".encode())
        if command.endswith("&"):
            self.process.stdin.flush()
            return "".join(self.output.readline().decode() for _ in shown)
        self.process.stdin.write(b"printf '\\0'\n")
        self.process.stdin.flush()
        return self.output.readuntil(b"\0")[:-1].decode()

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.long
@pytest.mark.parametrize("block", SESSIONS, ids=ids(SESSIONS))
def test_a_session_prints_what_the_page_shows(block, tmp_path):
    if not (COMMANDS / "rioecho-server").exists():
        pytest.skip("the commands are not installed")
    steps = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif line.startswith("> "):  # a command of several lines
            steps[-1] = (f"{steps[-1][0]}\n{line[2:]}", [])
        else:
            steps[-1][1].append(line + "\n")
    with contextlib.closing(Shell(tmp_path)) as shell:
        for command, shown in steps:
            printed = shell.run(command, shown)
            pattern = re.escape("".join(shown)).replace(r"\.\.\.", ".*?")
            assert re.fullmatch(pattern, printed, re.DOTALL), f"$ {command}\n{printed}"

"""Print which lines of the compiled sources were not executed, and how many were: ``coverage.py MINIMUM TREE...``.

In each TREE is what was built with RIOECHO_BUILD=coverage: the package, or modules that tests compile with its .pxd
files. The counts are there. The exit status is 1 if less than MINIMUM per cent of the lines were executed.

A Cython line stands for all the C code that was made of it in any module of any tree: the code of a .pxd file is
compiled into each module that uses it. It counts as executed if any of that code was. Lines of a header count only if a
module calls their function, and those of a method that only raises NotImplementedError not at all.
"""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parents[1]
MARKER = re.compile(r'\s*/\* "(rioecho/[^"]+)":([0-9]+)$')  # Cython's comment before the C code of a line
HEADER = re.compile(r"(?:^|/)(rioecho/(?!.*rioecho/).+\.h)$")  # as the package and as other modules include it


def cython_lines(c_file: Path) -> dict[int, tuple[str, int]]:
    """Return the file and the line of which each line of a C file was made, without those that Cython has added."""
    made_of = {}
    place = None
    for number, text in enumerate(c_file.read_text().splitlines(), 1):
        if marker := MARKER.match(text):
            place = marker[1], int(marker[2])
        elif text == "}" or text.strip() == "/* function exit code */":
            place = None
        if place:
            made_of[number] = place
    return made_of


def counts_of(module: Path) -> Iterator[tuple[tuple[str, int], int]]:
    """Yield the counts of the lines of a module, whose file of notes is given."""
    command = ["gcov", "--json-format", "--stdout", module.name]
    done = subprocess.run(command, cwd=module.parent, capture_output=True, check=True)  # noqa: S603
    for result in map(json.loads, done.stdout.splitlines()):
        for file in result["files"]:
            name = file["file"]
            header = HEADER.search(name)
            made_of = cython_lines(Path(result["current_working_directory"], name)) if name.endswith(".c") else {}
            for line in file["lines"]:
                place = (header[1], line["line_number"]) if header else made_of.get(line["line_number"])
                if place:
                    yield place, line["count"]


def abstract(text: list[str]) -> Iterator[int]:
    """Yield the numbers of the lines of abstract methods, from the ``def`` on."""
    for number, line in enumerate(text, 1):
        if line.strip() == "raise NotImplementedError":
            yield number
            while "def " not in text[number - 1]:
                number -= 1
            yield number


def main() -> None:
    minimum, trees = float(sys.argv[1]), [Path(tree) for tree in sys.argv[2:]]
    files: dict[str, Counter[int]] = defaultdict(Counter)
    for tree in trees:
        for module in tree.rglob("*.gcno"):
            for (name, line), count in counts_of(module):
                files[name][line] += count
    table = []
    for name, counts in sorted(files.items()):
        text = (SOURCES / name).read_text().splitlines()
        for line in abstract(text):
            counts.pop(line, None)
        missed = sorted(line for line, count in counts.items() if not count)
        table.append((name, len(counts), len(missed)))
        if missed:
            print(f"\n{name}", *(f"{line:5}  {text[line - 1]}" for line in missed), sep="\n")
    table.append(("all", sum(lines for _, lines, _ in table), sum(missed for _, _, missed in table)))
    print(f"\n{'file':36}{'lines':>8}{'missed':>8}{'%':>8}")
    for name, lines, missed in table:
        print(f"{name:36}{lines:8}{missed:8}{100 - 100 * missed / max(lines, 1):8.2f}")
    if not lines:
        sys.exit(f"no counts are in {', '.join(map(str, trees))}")
    if 100 - 100 * missed / lines < minimum:
        sys.exit(f"less than {minimum} % of the lines were executed: test what is new, or remove it")


main()

"""The fuzz targets by name. A target is a function of an input; whatever it raises is a failure.

They need no fuzzer: tests/fuzz/test_corpus.py runs them on the inputs in tests/fuzz/corpus/ with every build, and

    PYTHONPATH=tests python -m fuzz.targets NAME FILE...

runs one of them on files. tests/fuzz/fuzzer.c runs one under libFuzzer.
"""

import sys
from pathlib import Path

from fuzz import calls, headers, texts

TARGETS = {
    "buffer": calls.buffer,
    "framing": calls.framing,
    "feed": calls.feed,
    "proxy": headers.proxy,
    "text": texts.text,
}


if __name__ == "__main__":
    name, *files = sys.argv[1:]
    for file in files:
        print(file)
        TARGETS[name](Path(file).read_bytes())

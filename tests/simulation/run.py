"""Run simulated histories of the event loop: ``python tests/simulation/run.py --seed N --trace``.

A history is the life of a server in a model of the kernel, in which a seed chooses what the clients do and when, and
what each system call returns. The same seed makes the same history. Without ``--seed``, ``--count`` histories are run.
"""

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def compiled(folder):
    """Compile the model into ``folder`` and return a value of LD_PRELOAD that loads it; None without a compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = Path(folder) / "simulation.so"
    sources = sorted((HERE / "model").glob("*.c"))
    options = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler.split(), *options, "-o", library, *sources, "-ldl", "-lpthread"], check=True)
    # After the libraries that are preloaded already: a sanitizer's runtime must be the first.
    return f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()


def run_histories(seeds, trace):
    import history

    found = collections.Counter()
    for seed in seeds:
        print(seed, time.process_time(), flush=True) if "SHOW" in os.environ else None
        digest, counts = history.run(seed, trace)
        if trace:
            print(f"hash {digest:016x}")
        for name, _ in counts._fields_:
            found[name] += getattr(counts, name)
        found["hash"] ^= digest
    found["hash"] = f"{found['hash']:016x}"
    print(f"{len(seeds)} histories:", ", ".join(f"{name} {n}" for name, n in found.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="the seed of the only history, or of the first")
    parser.add_argument("--count", type=int, help="number of histories (1 with --seed, else 1000)")
    parser.add_argument("--trace", action="store_true", help="print each event")
    options = parser.parse_args()
    if "RIOECHO_SIMULATION" in os.environ:
        first = options.seed or 0
        run_histories(range(first, first + (options.count or (1000 if options.seed is None else 1))), options.trace)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(folder)
        if library is None:
            parser.error("no C compiler is installed")
        environment = {**os.environ, "LD_PRELOAD": library, "RIOECHO_SIMULATION": "1"}
        command = [sys.executable, "-X", "faulthandler", *sys.argv]
        return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())

"""Run simulated histories of the event loop: ``python tests/simulation/run.py --seed N --trace``.

A history is the life of a server in a model of the kernel, in which a seed chooses what the clients do and when, and
what each system call returns. The same seed makes the same history. Without ``--seed``, ``--count`` histories are run.
"""

import argparse
import collections
import hashlib
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from support.simulation import environment  # noqa: E402


def run_histories(seeds, **options):
    """Run the histories of some seeds, and print what happened in all of them, and a hash of their events."""
    import history  # needs the model

    totals, digest = collections.Counter(), hashlib.sha256()
    for seed in seeds:
        try:
            history_digest, counts = history.run(seed, **options)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # in the middle of a history nothing can be released
        digest.update(b"%016x" % history_digest)
        for name, _ in counts._fields_:
            totals[name] += getattr(counts, name)
    print(f"{len(seeds)} histories:", ", ".join(f"{name} {n}" for name, n in totals.items()))
    print("hash", digest.hexdigest()[:16])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="the seed of the only history, or of the first")
    parser.add_argument("--count", type=int, help="number of histories (1 with --seed, else 1000)")
    parser.add_argument("--trace", action="store_true", help="print each event")
    parser.add_argument("--corrupt", action="store_true", help="change some bytes, which is to be found")
    options = parser.parse_args()
    if "RIOECHO_SIMULATION" in os.environ:
        first = options.seed or 0
        count = options.count or (1000 if options.seed is None else 1)
        run_histories(range(first, first + count), trace=options.trace, corrupt=options.corrupt)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        with_model = environment(folder)
        if with_model is None:
            parser.error("no C compiler is installed")
        return subprocess.run([sys.executable, "-X", "faulthandler", *sys.argv], env=with_model).returncode


if __name__ == "__main__":
    sys.exit(main())

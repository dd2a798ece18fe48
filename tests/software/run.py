"""Run the tests of network software on both kinds of files: ``python tests/software/run.py --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from software.command import main

if __name__ == "__main__":
    sys.exit(main())

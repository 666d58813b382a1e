"""Feed changed files of every format to their readers: `tests/fuzzing.py` at full length, one process a format.

    python benchmarks/mutations.py --files 20000 [--out mutations.json]

A format's process ends with an error, and so does this one, if a reader does anything but load or refuse a file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import add_out, write

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.append(str(TESTS))


def check(outcome: dict[str, Any], files: int) -> None:
    """Raise AssertionError if the changes were all gross or all harmless, or if memory grew."""
    assert outcome["loaded"] + outcome["refused"] == files, outcome
    assert outcome["loaded"] > files / 200, outcome
    assert outcome["refused"] > files / 4, outcome
    assert outcome["grown_mb"] < 64, outcome


def main() -> None:
    """Run all formats and print what became of the files."""
    from fuzz_formats import FORMATS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000, help="files of each format (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="of the changes (default: 1)")
    add_out(parser)
    options = parser.parse_args()
    formats = []
    for name in FORMATS:
        command = [sys.executable, str(TESTS / "fuzzing.py"), name, str(options.files), str(options.seed)]
        formats.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        print(formats[-1], flush=True)
        check(formats[-1], options.files)
    write(options, torch.device("cpu"), formats=formats)


if __name__ == "__main__":
    main()

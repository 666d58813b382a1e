"""The tables of the documentation that benchmarks measured, from the files in benchmarks/measured that they wrote.

    python benchmarks/pages.py            rewrite them
    python benchmarks/pages.py --check    fail if one is not what its file says

A table stands between ``<!-- measured:KIND MACHINE -->`` and ``<!-- /measured -->``; KIND is a function of
`speed_tables.py` or `reliability_tables.py`, and MACHINE the first part of its files' names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import reliability_tables
import speed_tables
from scaling import plot
from tables import read

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- measured:(\w+) ([\w-]+) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """A page with every table as its files have it."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{_table(m[2])(m[3])}\n\n{m[4]}", text)


def _table(kind: str) -> Callable[[str], str]:
    for module in (speed_tables, reliability_tables):
        found = getattr(module, kind, None)
        if callable(found) and found.__module__ == module.__name__:
            return found  # type: ignore[no-any-return]
    raise SystemExit(f"no table is called {kind}")


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a table is stale"
    )
    check = parser.parse_args().check
    stale = 0
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = refreshed(text)
        if new == text and not _BLOCK.search(text):
            continue
        if not check:
            page.write_text(new, encoding="utf-8")
        print(f"docs/{page.name}: {'as measured' if new == text else 'stale' if check else 'rewritten'}")
        stale += new != text
    if not check:
        plot(
            speed_tables.scaling_series("cpu"),
            ROOT / "docs" / "scaling-cpu.png",
            read("cpu", "scaling")["machine"],
        )
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())

"""The tables of the documentation that benchmarks measured, from the files in benchmarks/measured that they wrote.

    python benchmarks/pages.py            rewrite them
    python benchmarks/pages.py --check    fail if one is not what its file says

A table stands between ``<!-- measured:KIND/MACHINE -->`` and ``<!-- /measured -->``; KIND is one of :data:`KINDS`, and
MACHINE the first part of its files' names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import reliability_tables as reliability
import speed_tables as speed
from scaling import plot
from tables import read

from itrd.bench.documents import DocumentError, filled

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "throughput": speed.throughput,
    "floors": speed.floors,
    "scaling": speed.scaling,
    "choices": speed.choices,
    "depthwise": speed.depthwise,
    "fidelity": speed.fidelity,
    "packed": speed.packed,
    "loading": speed.loading,
    "promises": reliability.promises,
    "stops": reliability.stops,
    "kills": reliability.kills,
    "mutations": reliability.mutations,
    "endurance": reliability.endurance,
}


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a table is stale"
    )
    check = parser.parse_args().check
    shown: set[str] = set()

    def block(what: str) -> str:
        kind, _, machine = what.partition("/")
        if kind not in KINDS:
            raise DocumentError(f"no table is called {kind}; there are {', '.join(KINDS)}")
        shown.add(kind)
        return KINDS[kind](machine)

    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
    pages = {path: filled(text, "measured", block) for path, text in texts.items() if "<!-- measured" in text}
    if missing := KINDS.keys() - shown:
        raise SystemExit(f"on no page: {', '.join(sorted(missing))}")
    stale = [path for path, new in pages.items() if new != texts[path]]
    if not check:
        for path in stale:
            path.write_text(pages[path], encoding="utf-8")
        plot(
            speed.scaling_series("cpu"), ROOT / "docs" / "scaling-cpu.png", read("cpu", "scaling")["machine"]
        )
    for path in pages:
        print(
            f"docs/{path.name}: {'as measured' if path not in stale else 'stale' if check else 'rewritten'}"
        )
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

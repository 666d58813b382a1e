"""The tables and the plot of docs/performance.md, from the files in benchmarks/measured that the benchmarks wrote.

    python benchmarks/page.py            rewrite them
    python benchmarks/page.py --check    fail if a table is not what its file says

A table stands between ``<!-- measured:KIND MACHINE -->`` and ``<!-- /measured -->``; KIND is a function of this file,
and MACHINE the first part of its files' names.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from floors import floor
from scaling import Point, Series, plot

ROOT = Path(__file__).resolve().parents[1]
PAGE, MEASURED = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "measured"
_BLOCK = re.compile(r"(<!-- measured:(\w+) (\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def read(machine: str, benchmark: str) -> dict[str, Any]:
    """What a benchmark wrote with --out."""
    found: dict[str, Any] = json.loads((MEASURED / f"{machine}-{benchmark}.json").read_text())
    return found


def throughput(machine: str) -> str:
    """Images per second of every pair and column, and how many times the conventional loop's."""
    found = read(machine, "throughput")
    columns = list(next(iter(found["images_per_second"].values())))
    rows = []
    for pair, rates in found["images_per_second"].items():
        base = rates["conventional"][0]
        cells = [f"{rates[column][0]:,.0f} ({rates[column][0] / base:.1f}×)" for column in columns[1:]]
        rows.append([named(pair), f"{base:,.0f}", *cells])
    spread = max(spread for rates in found["images_per_second"].values() for _, spread in rates.values())
    return table(["", *columns], rows) + (
        f"\n\nBatch {found['batch_size']}, n = {found['epochs']} epochs of {found['steps']} steps, half range at most "
        f"{spread:.0f}%. {found['machine']}."
    )


def floors(machine: str) -> str:
    """Floors of every pair, and how many times its floor a step takes."""
    found, measured = read(machine, "floors"), read(machine, "throughput")
    if found["batch_size"] != measured["batch_size"]:
        raise SystemExit("floors.py and throughput.py were run with different batches")
    columns = ["student: arithmetic, bytes", "teacher: arithmetic, bytes", "live teacher", "table"]
    rows = []
    for pair, parts in found["milliseconds"].items():
        cells = [
            f"{parts[f'{role} arithmetic']:.0f}, {parts[f'{role} bytes']:.0f}"
            for role in ("student", "teacher")
        ]
        for column, roles in (
            (f"live {found['precision']}", ("student", "teacher")),
            ("table", ("student",)),
        ):
            taken = 1000 * found["batch_size"] / measured["images_per_second"][pair][column][0]
            cells.append(f"{taken:.0f} ({taken / floor(parts, roles):.1f}×)")
        rows.append([named(pair), *cells])
    text = f"{found['flops'] / 1e9:,.0f} GFLOP/s, {found['bytes_per_second'] / 1e9:.0f} GB/s. {found['machine']}."
    return table(["milliseconds a step", *columns], rows) + f"\n\nMeasured rates: {text}"


def scaling(machine: str) -> str:
    """Lines fitted to time and memory along each quantity."""
    found = read(machine, "scaling")
    rows = []
    for given in found["series"]:
        series = Series(given["name"], given["unit"], [Point(**point) for point in given["points"]])
        cells = [f"{series.name}, {series.points[0].x:,} to {series.points[-1].x:,}"]
        for values in ([p.milliseconds for p in series.points], [p.mebibytes for p in series.points]):
            offset, slope, r2, exponent = series.line(values)
            cells += [f"{offset:.3g} + {slope:.3g} x", f"{r2:.3f}", f"{exponent:.2f}"]
        rows.append([*cells[:2], f"{max(p.spread for p in series.points):.0f}%", *cells[2:]])
    heads = ["x", "ms", "half range at most", "R²", "exponent", "MiB", "R²", "exponent"]
    return table(heads, rows) + f"\n\n{found['machine']}."


def draw(machine: str) -> None:
    """Draw the plot of :func:`scaling`."""
    found = read(machine, "scaling")
    series = [
        Series(given["name"], given["unit"], [Point(**point) for point in given["points"]])
        for given in found["series"]
    ]
    plot(series, PAGE.with_name(f"scaling-{machine}.png"), found["machine"])


def named(pair: str) -> str:
    """A pair as the page writes it."""
    return pair.replace(":", " → ")


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])


def refreshed(text: str) -> str:
    """The page with every table as its files have it."""
    kinds = {"throughput": throughput, "floors": floors, "scaling": scaling}
    return _BLOCK.sub(lambda m: f"{m[1]}\n{kinds[m[2]](m[3])}\n\n{m[4]}", text)


def main() -> int:
    """Rewrite or check the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a table is stale"
    )
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    new = refreshed(text)
    if not check:
        PAGE.write_text(new, encoding="utf-8")
        draw("cpu")
    print(f"{PAGE.relative_to(ROOT)}: {'as measured' if new == text else 'stale' if check else 'rewritten'}")
    return int(check and new != text)


if __name__ == "__main__":
    sys.exit(main())

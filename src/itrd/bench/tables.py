"""The ledger's tables as Markdown."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from itrd.bench.summary import Difference, Entry, TrackSummary, title_of
from itrd.bench.tracks import ALONE, TEACHER
from itrd.files import read_json
from itrd.recipes import PAIRS, Pair
from itrd.recipes.published import DIFFERENT, SAME
from itrd.stats import Summary

_NOT_LAST = {"best": "‡", "not stated": "†"}


def track_tables(summary: TrackSummary) -> str:
    """Tables of a track, with what is needed to read them."""
    if summary.published:
        parts = [
            "Published, then **ours**: mean of the last epoch over n seeds, ± half of the 95% interval (from two "
            "seeds on), and the mean of the best epochs, which are chosen on the test set. † The "
            "source does not say which epoch. ‡ Best epoch.",
            "Same architecture family:",
            published_table(summary, SAME),
            "Different architectures:",
            published_table(summary, DIFFERENT),
        ]
    else:
        parts = []
        for pair in summary.pairs if summary.runs else ():
            parts += [
                f"Teacher {escape(pair.teacher)}, student {escape(pair.student)}:",
                method_table(summary, pair),
            ]
    parts += map(escape, warned(summary))
    return "\n\n".join([f"{escape(summary.title)}. {escape(summary.note)}".strip(), *parts, _where(summary)])


def warned(summary: TrackSummary) -> list[str]:
    """One sentence on the groups whose means mean nothing; none where all is in order."""
    if not summary.warnings:
        return []
    return [f"Not to be relied on: {'; '.join(summary.warnings)}."]


def published_table(summary: TrackSummary, pairs: Iterable[Pair]) -> str:
    """One of the published tables with ours beside; an empty cell is empty."""
    pairs = list(pairs)
    rows = []
    for method in summary.methods:
        entries = [summary.entry(pair, method) for pair in pairs]
        if any(e.runs or e.published for e in entries):
            rows.append([escape(title_of(method)), *(_beside(entry) for entry in entries)])
    return table(["", *(f"{escape(t)} → {escape(s)}" for t, s in pairs)], rows)


def _beside(entry: Entry) -> str:
    parts = []
    if said := _published(entry):
        parts.append(said)
    if entry.last is not None and entry.best is not None:
        interval = f" ±{hundredths(entry.last.half_width)}" if entry.last.n > 1 else ""
        parts.append(
            f"**{hundredths(entry.last.mean)}**{interval} (n {entry.last.n}, best {hundredths(entry.best.mean)})"
        )
    return "<br>".join(parts)


def method_table(summary: TrackSummary, pair: Pair) -> str:
    """All methods on one pair that no published number belongs to."""
    rows = []
    for method in summary.methods:
        entry = summary.entry(pair, method)
        if entry.last is None or entry.best is None:
            rows.append([escape(title_of(method)), *[""] * 6])
            continue
        gain = None if method in (TEACHER, ALONE) else summary.against(pair, method, ALONE)
        rate = statistics.median(run.images_per_second for run in entry.runs)
        rows.append(
            [
                escape(title_of(method)),
                str(entry.last.n),
                f"**{hundredths(entry.last.mean)}**",
                spread(entry.last),
                hundredths(entry.best.mean),
                difference(gain),
                f"{rate:,.0f}",
            ]
        )
    columns = ["", "n", "last epoch, %", "std", "best epoch, %", "against student alone", "images/s"]
    return table(columns, rows)


def itrd_table(summary: TrackSummary) -> str:
    """ITRD's cells against their published values."""
    rows = []
    for pair in PAIRS:
        entry = summary.entry(pair, "itrd")
        said = entry.published.top1 if entry.published else None
        gap, last = entry.from_published, entry.last
        rows.append(
            [
                f"{pair.teacher} → {pair.student}",
                "" if said is None else hundredths(said),
                "" if last is None else f"**{hundredths(last.mean)}**",
                "" if last is None else str(last.n),
                "" if gap is None else hundredths(gap, "+"),
                difference(summary.against(pair, "itrd", ALONE)),
            ]
        )
    return table(["", "published", "ours, last epoch", "n", "difference", "against student alone"], rows)


def measured_table(summary: TrackSummary) -> str:
    """The cells that were run, and nothing else."""
    rows: dict[str, list[str]] = {}
    for method in summary.methods:
        for pair in summary.pairs:
            entry = summary.entry(pair, method)
            if entry.last is None or entry.best is None:
                continue
            rows[_cell_name(pair, method)] = [
                _published(entry),
                f"**{hundredths(entry.last.mean)}**",
                str(entry.last.n),
                spread(entry.last),
                "" if entry.from_published is None else hundredths(entry.from_published, "+"),
                hundredths(entry.best.mean),
            ]
    columns = ["", "published, %", "ours, last epoch, %", "n", "std", "against published", "best epoch, %"]
    shown = [table(columns, [[escape(name), *cells] for name, cells in rows.items()])] if rows else []
    marks = {"†": "The source does not say which epoch.", "‡": "Best epoch."}
    legend = " ".join(
        f"{mark} {text}" for mark, text in marks.items() if any(mark in cells[0] for cells in rows.values())
    )
    return "\n\n".join(filter(None, [*shown, legend, *map(escape, warned(summary)), _where(summary)]))


def _published(entry: Entry) -> str:
    """The published number with its mark; nothing where there is none."""
    if entry.published is None or entry.published.top1 is None:
        return ""
    return f"{hundredths(entry.published.top1)}{_NOT_LAST.get(entry.published.epoch, '')}"


def _cell_name(pair: Pair, method: str) -> str:
    if method == TEACHER:
        return f"{pair.teacher}, a teacher"
    if method == ALONE:
        return f"{pair.student} alone"
    return f"{pair.teacher} → {pair.student}, {title_of(method)}"


def zoo_table(zoo: Path) -> str:
    """The teachers of the zoo, as their cards describe them."""
    rows = []
    for path in sorted(zoo.rglob("*.json")):
        try:
            card = read_json(path)
            name = path.relative_to(zoo).with_suffix("").as_posix()
            row = [name, card["data"], card["last"]["top1"], card["best"]["top1"], card["top1"]]
            epochs, seed = card["settings"]["epochs"], card["seed"]
            numbers = [f"{float(value):.2f}" for value in row[2:]]
            rows.append([escape(row[0]), escape(row[1]), str(int(epochs)), str(int(seed)), *numbers])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `itrd bench check` says what is wrong with it
    columns = ["teacher", "data", "epochs", "seed", "last epoch, %", "best epoch, %", "in half precision, %"]
    return table(columns, rows)


def _where(summary: TrackSummary) -> str:
    if not summary.runs:
        return "No runs yet."
    machines = ", ".join(f"{escape(name)} ({count})" for name, count in summary.hardware())
    precisions = sorted({run.precision for run in summary.runs})
    return (
        f"Track `{escape(summary.name)}`, {len(summary.runs)} run{'s' * (len(summary.runs) > 1)}, "
        f"{escape(', '.join(precisions))}. "
        f"Hardware (runs): {machines}.{_copies(summary)}"
    )


def _copies(summary: TrackSummary) -> str:
    """Say which students learned from which of several files of one teacher; nothing where there is one each."""
    files: dict[str, Counter[str]] = {}
    for run in summary.runs:
        if run.cell.teacher is not None and run.teacher_sha256 is not None:
            files.setdefault(run.cell.teacher, Counter())[run.teacher_sha256[:8]] += 1
    return "".join(
        f" {escape(name)} taught from {len(found)} files, its weights as trained and rounded to half precision "
        f"(sha256, students): {', '.join(f'{sha256} ({count})' for sha256, count in sorted(found.items()))}."
        for name, found in sorted(files.items())
        if len(found) > 1
    )


def hundredths(value: float, sign: str = "") -> str:
    """Write a number with two decimals; half goes up, as in the page's code, whichever side of it a sum came out."""
    return f"{value + math.copysign(1e-9, value):{sign}.2f}"


def spread(found: Summary) -> str:
    """Standard deviation, where there is one."""
    return hundredths(found.std) if found.n > 1 else ""


def difference(found: Difference | None) -> str:
    """A difference with its interval and p, as far as there are enough runs."""
    if found is None:
        return ""
    notes = []
    if not math.isnan(found.low):
        notes += [f"{hundredths(found.low, '+')} to {hundredths(found.high, '+')}", f"p {found.p:.2g}"]
        notes += [] if found.paired else ["unpaired"]
    if found.left_out:  # else it is the difference of the means beside it
        notes.append(f"{found.n} pair{'s' * (found.n > 1)}")
    return hundredths(found.difference, "+") + (f" ({', '.join(notes)})" if notes else "")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def escape(text: object) -> str:
    """Text from a record, so that Markdown takes it literally."""
    plain = " ".join(str(text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*[]|" else c for c in plain)

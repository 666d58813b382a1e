"""What the page shows, as plain data, small enough for a browser to hold 20,000 runs.

Runs are columns. What they have in common (settings, machine, teacher, ...) is stored once and referred to by
number. Curves are hundredths of a percent, each point as the difference from the one before; all curves together
have at most :data:`POINTS` points, so that with many runs each keeps evenly spaced epochs, the first and the last
among them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from itertools import combinations, pairwise
from typing import Any

from itrd.bench.cells import Cell
from itrd.bench.record import Run
from itrd.bench.summary import Difference, Entry, TrackSummary, title_of
from itrd.bench.tables import warned
from itrd.bench.tracks import ALONE, TEACHER
from itrd.recipes import Pair
from itrd.recipes.published import DIFFERENT, SAME

POINTS = 1_200_000
FEWEST_POINTS = 24
EXACT = 8  # digits of means: enough that the page and the Markdown tables round alike
LONGEST_TEXT = 2000  # of a string in a run's details

# What a run has for itself; everything else of a record is shared by many.
_OWN = ("format", "cell", "finished", "images_per_second", "seconds", "wall_seconds", "last", "best")


class Pool:
    """Values by number, each stored once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, key: Hashable, value: Any) -> int:
        """Return the number of a value; equal keys have equal values."""
        number = self._numbers.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


def page_data(tracks: Sequence[TrackSummary]) -> dict[str, Any]:
    """Collect everything that the page shows."""
    runs = [run for summary in tracks for run in sorted(summary.runs, key=lambda run: run.cell.name)]
    numbers = {id(run): i for i, run in enumerate(runs)}
    hardware, pool, details, commands = Pool(), Pool(), Pool(), Pool()
    number_of_track = {summary.name: i for i, summary in enumerate(tracks)}
    methods = [{name: i for i, name in enumerate(summary.methods)} for summary in tracks]
    keep = max(FEWEST_POINTS, POINTS // max(1, len(runs)))
    columns: dict[str, list[Any]] = {
        "name": [run.cell.name for run in runs],
        "file": [run.path.name for run in runs],
        "track": [number_of_track[run.cell.track] for run in runs],
        "method": [methods[number_of_track[run.cell.track]][run.cell.method] for run in runs],
        "seed": [run.cell.seed for run in runs],
        "last": [_number(run.last) for run in runs],
        "best": [_number(run.best) for run in runs],
        "bestEpoch": [run.best_epoch for run in runs],
        "epochs": [len(run.top1) for run in runs],
        "seconds": [_number(run.seconds, 1) for run in runs],
        "wall": [_number(run.wall_seconds, 1) for run in runs],
        "rate": [_number(run.images_per_second, 1) for run in runs],
        "finished": [_short(run.details.get("finished")) for run in runs],
        "hardware": [hardware.add(run.hardware, _short(run.hardware)) for run in runs],
        "command": [commands.add(_command(run.cell), _command(run.cell)) for run in runs],
        "details": [_details(run, pool, details) for run in runs],
        "curve": [packed(run.top1, keep) for run in runs],
    }
    if 2 * sum(len(run.top1) for run in runs) <= POINTS:
        columns["train"] = [packed(run.train_top1, keep) for run in runs]
    longest = max((len(run.top1) for run in runs), default=0)
    thinned = f" Long curves show {keep} of their epochs, evenly spaced." if longest > keep else ""
    return {
        "runs": columns,
        "hardware": hardware.values,
        "pool": pool.values,
        "details": details.values,
        "commands": commands.values,
        "tracks": [_track(summary, numbers) for summary in tracks],
        "thinned": thinned,
        "footer": "Charts: Chart.js, MIT licence.",
    }


def packed(values: Sequence[float], keep: int) -> list[int]:
    """A curve of at most ``keep`` points, the first and the last among them, as differences of hundredths."""
    length = len(values)
    if length > keep:
        # Half goes up, as in the page's code, which finds the epochs again.
        values = [values[int(i * (length - 1) / (keep - 1) + 0.5)] for i in range(keep)]
    rounded = [round(100 * value) if math.isfinite(value) else 0 for value in values]
    return rounded[:1] + [b - a for a, b in pairwise(rounded)]


def _details(run: Run, pool: Pool, details: Pool) -> int:
    parts = {}
    for key, value in run.details.items():
        if key in _OWN:
            continue
        if key == "settings" and isinstance(value, dict):
            value = {name: setting for name, setting in value.items() if name != "seed"}
        text = json.dumps(value, sort_keys=True)
        parts[key] = pool.add(text, _short(value))
    return details.add(tuple(parts.items()), parts)


def _short(value: Any) -> Any:
    """Cut long strings, and numbers that JSON cannot hold, wherever they are."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + "..."
    if isinstance(value, float):
        return _number(value, 12)
    if isinstance(value, dict):
        return {str(key)[:LONGEST_TEXT]: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value


def _command(cell: Cell) -> str:
    """The command that reproduces a cell, with SEED for the number, which differs from run to run."""
    return cell.command().replace(f"--seeds {cell.seed}", "--seeds SEED")


def _number(value: float | None, digits: int = 4) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


def _track(summary: TrackSummary, numbers: dict[int, int]) -> dict[str, Any]:
    size = len(summary.methods)
    cells, versus = {}, {}
    for p, pair in enumerate(summary.pairs):
        entries = [summary.entry(pair, method) for method in summary.methods]
        for m, entry in enumerate(entries):
            if entry.runs or (entry.published and entry.published.top1 is not None):
                cells[p * size + m] = _cell(summary, entry, numbers)
        measured = [m for m, entry in enumerate(entries) if entry.runs and entry.method != TEACHER]
        found = {
            a * size + b: _comparison(summary.against(pair, summary.methods[a], summary.methods[b]))
            for a, b in combinations(measured, 2)
        }
        if found:
            versus[p] = found
    return {
        "name": summary.name,
        "title": summary.title,
        "note": " ".join([summary.note, *warned(summary)]).strip(),
        "published": summary.published,
        "runCount": len(summary.runs),
        "pairs": summary.pairs,
        "groups": _groups(summary),
        "methods": [{"name": method, "title": title_of(method)} for method in summary.methods],
        "hardware": summary.hardware(),
        "cells": cells,
        "versus": versus,
    }


def _groups(summary: TrackSummary) -> list[dict[str, Any]]:
    numbers = {pair: i for i, pair in enumerate(summary.pairs)}
    if not summary.published:
        return [{"title": "All pairs" if len(numbers) > 1 else "Results", "pairs": list(numbers.values())}]
    groups: list[tuple[str, Sequence[Pair]]] = [
        ("Same architecture family", SAME),
        ("Different architectures", DIFFERENT),
        ("Other pairs", [pair for pair in numbers if pair not in SAME and pair not in DIFFERENT]),
    ]
    return [{"title": title, "pairs": [numbers[p] for p in pairs]} for title, pairs in groups if pairs]


def _cell(summary: TrackSummary, entry: Entry, numbers: dict[int, int]) -> dict[str, Any]:
    cell: dict[str, Any] = {"n": len(entry.runs)}
    if entry.published is not None and entry.published.top1 is not None:
        cell |= {"pub": entry.published.top1, "pubEpoch": entry.published.epoch}
        if entry.published.note:
            cell["note"] = entry.published.note
    if entry.last is not None and entry.best is not None:
        last = entry.last
        seconds = sum(run.seconds for run in entry.runs) / len(entry.runs)
        gain = None if entry.method in (ALONE, TEACHER) else summary.against(entry.pair, entry.method, ALONE)
        cell |= {
            "mean": _number(last.mean, EXACT),
            "std": _number(last.std, EXACT),
            "low": _number(last.low, EXACT),
            "high": _number(last.high, EXACT),
            "best": _number(entry.best.mean, EXACT),
            "seconds": _number(seconds, 1),
            "gap": _number(entry.from_published, EXACT),
            "gain": _comparison(gain),
            "runs": [numbers[id(run)] for run in entry.runs],
        }
    return cell


def _comparison(found: Difference | None) -> list[Any] | None:
    if found is None:
        return None
    numbers = [_number(value, EXACT) for value in (found.difference, found.low, found.high)]
    return [*numbers, _number(found.p, 6), found.n if found.left_out else None, found.paired]

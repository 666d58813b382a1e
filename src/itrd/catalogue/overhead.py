"""What a method's loss costs, as ``benchmarks/loss_overhead.py`` measured it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

FILE = "loss_overhead.json"


@dataclass(frozen=True)
class Cost:
    """Loss of one method, forward and backward.

    Attributes:
        method: registry name.
        stage: ``main`` or ``first``.
        percent: median time in percent of the student's own training step; None where it cannot run.
        peak_percent: peak memory in percent of that step's.
        reason: why it cannot run.
    """

    method: str
    stage: str
    percent: float | None
    peak_percent: float | None
    reason: str


@dataclass(frozen=True)
class Measurement:
    """All methods under one condition.

    Attributes:
        where: machine, threads, precision and batch size in words.
        pair: teacher and student.
        versions: of Python and torch.
        repeats: how often each time was taken.
        load: load average of the machine just before, from other processes.
        step_ms: median time of the student's own step.
        costs: the methods'.
    """

    where: str
    pair: str
    versions: dict[str, str]
    repeats: int
    load: float
    step_ms: float
    costs: tuple[Cost, ...]

    def of(self, method: str) -> tuple[Cost, ...]:
        """Return what one method costs: one entry, or one for each of its stages."""
        return tuple(cost for cost in self.costs if cost.method == method)


@cache
def measurements() -> tuple[Measurement, ...]:
    """Read what ships with the package; nothing if no measurement does."""
    file = files("itrd.recipes").joinpath(FILE)
    if not file.is_file():
        return ()
    return tuple(_read(entry) for entry in json.loads(file.read_text(encoding="utf-8"))["measurements"])


def percent(cost: Cost) -> str:
    """Write a cost in percent of the student's step."""
    if cost.percent is None:
        return f"cannot run: {cost.reason}"
    return f"{cost.percent:.1f}%" if cost.percent < 9.95 else f"{cost.percent:.0f}%"


def cost_in_words(measurement: Measurement, method: str) -> str:
    """Write what a method costs under one condition, both stages if it has two; empty if not measured."""
    costs = measurement.of(method)
    return " and ".join(percent(c) + (" in its first stage" if c.stage == "first" else "") for c in costs)


def _read(entry: dict[str, Any]) -> Measurement:
    step = entry["step"]
    costs = tuple(
        Cost(
            line["method"],
            line["stage"],
            None if line["reason"] else 100 * line["median_ms"] / step["median_ms"],
            None if line["reason"] else 100 * line["peak_mib"] / step["peak_mib"],
            line["reason"],
        )
        for line in entry["methods"]
    )
    where = f"{entry['machine']}, {entry['precision']}, batch {entry['batch_size']}"
    return Measurement(
        where=where,
        pair=entry["pair"],
        versions=entry["versions"],
        repeats=entry["repeats"],
        load=entry["other_load"],
        step_ms=step["median_ms"],
        costs=costs,
    )

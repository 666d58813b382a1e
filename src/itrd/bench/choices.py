"""The table that a method is chosen by: what each reads, what its loss costs, what it gained in a track."""

from __future__ import annotations

from itrd.bench.summary import TrackSummary
from itrd.bench.tables import difference, escape, hundredths, table, warned
from itrd.bench.tracks import ALONE
from itrd.catalogue.overhead import cost_in_words, measurements
from itrd.methods import METHODS, method_class
from itrd.recipes import Pair

# What a user may have of the teacher, from the least to the most.
_READS = ("logits", "embedding", "maps", "stem")


def choice_table(summary: TrackSummary) -> str:
    """A table of all methods, those that read least of the networks first.

    Costs are those that ship with the package (:mod:`itrd.catalogue.overhead`); the accuracies are the track's.
    """
    costs = measurements()
    columns = ["method", "reads", *(f"cost {n}" for n in range(1, len(costs) + 1))]
    for pair in summary.pairs:
        where = f"{escape(pair.teacher)} → {escape(pair.student)}"
        columns += [f"{where}, last epoch, %", "against student alone"]
    rows = []
    for name in sorted(METHODS, key=_demands):  # sorting keeps the registry's order among equals
        row = [f"`{name}`", _reads(name), *(cost_in_words(measured, name) for measured in costs)]
        for pair in summary.pairs:
            row += _gained(summary, pair, name)
        rows.append(row)
    conditions = [
        f"Cost {n}: {measured.pair}, {measured.where}; medians of {measured.repeats}, with a load of "
        f"{measured.load:g} by other processes."
        for n, measured in enumerate(costs, 1)
    ]
    return "\n\n".join(
        [table(columns, rows), " ".join(conditions), f"Accuracies: {escape(summary.title)}. {_note(summary)}"]
    )


def _demands(name: str) -> tuple[bool, ...]:
    reads = method_class(name).reads
    return tuple(what in reads for what in reversed(_READS))


def _reads(name: str) -> str:
    reads = method_class(name).reads
    return ", ".join(what for what in _READS if what in reads) or "labels"


def _gained(summary: TrackSummary, pair: Pair, name: str) -> list[str]:
    last = summary.entry(pair, name).last
    if last is None:
        return ["", ""]
    gain = None if name == ALONE else summary.against(pair, name, ALONE)
    return [f"**{hundredths(last.mean)}** (n {last.n})", difference(gain)]


def _note(summary: TrackSummary) -> str:
    return escape(" ".join([summary.note, *warned(summary)])) if summary.runs else "No runs yet."

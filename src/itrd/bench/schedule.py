"""The plan: cells in order of priority, what they cost, which are done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from itrd.bench import teachers
from itrd.bench.cells import Cell
from itrd.bench.claims import Claims
from itrd.bench.costs import Cost, Costs
from itrd.bench.ledger import Ledger
from itrd.bench.tracks import Track


@dataclass(frozen=True)
class Line:
    """One cell of a plan.

    Attributes:
        cell: the cell.
        state: ``done``, ``running``, ``half done``, ``no teacher`` or ``to do``.
        cost: what it costs, or, done, what it has cost.
        top1: its result, if it is done.
    """

    cell: Cell
    state: str
    cost: Cost
    top1: float | None


def plan(
    track: Track, cells: list[Cell], ledger: Ledger, *, runs: Path, zoo: Path, device: str = "auto"
) -> list[Line]:
    """Say of every cell where it stands."""
    everything = [run for name in ledger.tracks() for run in ledger.runs(name)]
    costs = Costs(track, everything, device)
    done = {run.cell: run for run in ledger.runs(track.name)}
    claims = Claims(ledger.root)
    lines = []
    for cell in cells:
        run = done.get(cell)
        if run is not None:
            lines.append(Line(cell, "done", Cost(run.seconds, "measured"), run.last))
            continue
        if claims.is_taken(cell):
            state = "running"
        elif (runs / track.name / cell.name / "checkpoint.pt").exists():
            state = "half done"
        elif cell.teacher is not None and not teachers.is_there(track, cell.teacher, zoo):
            state = "no teacher"
        else:
            state = "to do"
        lines.append(Line(cell, state, costs.of(cell), None))
    return lines

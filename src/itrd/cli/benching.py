"""What the benchmark's verbs have in common: which cells are meant, and what is printed."""

from __future__ import annotations

import sys

from itrd.bench.cells import Cell, Selection, cells_of, check_cells
from itrd.bench.ledger import Ledger
from itrd.bench.likeness import Standard
from itrd.bench.runner import Report
from itrd.bench.tracks import Track, load_track


def selected(
    track: str, pairs: str | None, methods: str | None, seeds: str | None
) -> tuple[Track, list[Cell]]:
    """Load a track, and choose its cells by comma-separated lists."""
    chosen = load_track(track)
    check_cells(chosen)
    return chosen, Selection.parse(pairs, methods, seeds).filter(cells_of(chosen), chosen)


def warn_of_others(track: Track, cells: list[Cell], ledger: Ledger) -> None:
    """Say which records of these cells are not of the settings that the track has now."""
    standard, meant = Standard(track), set(cells)
    others = [
        (run.path, faults)
        for run in ledger.runs(track.name)
        if run.cell in meant and (faults := standard.faults(run.cell, run.details))
    ]
    if others:
        path, faults = others[0]
        print(
            f"itrd: {counted(len(others), 'record')} not of the settings that track {track.name} has now, as {path} "
            f"({'; '.join(faults)}); give the changed track another name, or choose another ledger with --results",
            file=sys.stderr,
        )


def told(report: Report) -> int:
    """Print what a runner did and return the exit status: 1 if a cell failed."""
    for reason in dict.fromkeys(report.skipped.values()):
        names = [cell.name for cell, why in report.skipped.items() if why == reason]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        print(f"skipped: {shown}: {reason}", file=sys.stderr)
    for cell, error in report.failed.items():
        print(f"failed: {cell.name}: {error}", file=sys.stderr)
    why = {"budget": ", budget spent", "signal": ", asked to stop"}.get(report.stopped or "", "")
    print(f"{counted(len(report.done), 'cell')} done, {report.left} left{why}")
    return 1 if report.failed else 0


def counted(number: int, what: str) -> str:
    """A number of things for people: ``1 cell``, ``2 cells``."""
    return f"{number} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"

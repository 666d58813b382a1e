"""The ledger: a folder of records, one file each, that only grows.

``results/TRACK/NAME.json`` is created once and never written again. Two ledgers merge by copying files. Dot-files
are the runners' own (claims) and no part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from itrd.bench.cells import Cell
from itrd.bench.record import RecordError, Run, compact, encode, read_run
from itrd.files import create_atomically

RESULTS = Path("results")


class Ledger:
    """A folder of records.

    Records are immutable, so what was read once is not read again.

    Attributes:
        root: the folder.
        unreadable: what was wrong with files that are no records, by path, as far as they were read.
    """

    def __init__(self, root: Path = RESULTS) -> None:
        self.root = root
        self.unreadable: dict[Path, str] = {}
        self._runs: dict[Path, Run] = {}

    def tracks(self) -> list[str]:
        """Names of the tracks that have records."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and next(self.files(p.name), None))

    def files(self, track: str) -> Iterator[Path]:
        """The files of a track, by name."""
        folder = self.root / track
        if folder.is_dir():
            yield from sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))

    def runs(self, track: str) -> list[Run]:
        """All readable records of a track, one a cell; :attr:`unreadable` tells of the others."""
        found: dict[Cell, Run] = {}
        for path in self.files(track):
            if path not in self._runs and path not in self.unreadable:
                try:
                    self._runs[path] = read_run(path)
                except RecordError as error:
                    self.unreadable[path] = str(error)
            run = self._runs.get(path)
            if run is not None:
                found.setdefault(run.cell, run)
        return list(found.values())

    def done(self, track: str) -> set[Cell]:
        """The cells that have a record."""
        return {run.cell for run in self.runs(track)}

    def path(self, cell: Cell) -> Path:
        """Where a cell's record belongs."""
        return self.root / cell.track / f"{cell.name}.json"

    def add(self, cell: Cell, result: Mapping[str, Any]) -> bool:
        """Write a run's record; return False, and write nothing, if there is one already."""
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        return create_atomically(path, encode(compact({**result, "cell": cell.as_record()})))

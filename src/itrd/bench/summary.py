"""What the records of a track say together: per cell of its tables, and between methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from itrd.bench.ledger import Ledger
from itrd.bench.likeness import differences, key_of, standard
from itrd.bench.record import Run
from itrd.bench.tracks import ALONE, TEACHER, Track, list_tracks, load_track
from itrd.methods import METHODS, method_class
from itrd.recipes import TABLE_METHODS, Pair, Published, published
from itrd.stats import Comparison, Summary, compare, summarize

_MOST_WARNINGS = 10
_LONGEST_WARNING = 500  # a record may hold anything


@dataclass(frozen=True)
class Entry:
    """One cell of a table: all runs of a method on a pair.

    Attributes:
        pair: teacher and student.
        method: as in :class:`itrd.bench.cells.Cell`.
        runs: by seed; none if nothing was run.
        published: the published number, if the track may stand beside it and there is one.
    """

    pair: Pair
    method: str
    runs: tuple[Run, ...]
    published: Published | None

    @cached_property
    def last(self) -> Summary | None:
        """Accuracies after the last epoch: the result."""
        return summarize([run.last for run in self.runs]) if self.runs else None

    @cached_property
    def best(self) -> Summary | None:
        """Accuracies of the best epochs, which are chosen on the test set."""
        return summarize([run.best for run in self.runs]) if self.runs else None

    @property
    def by_seed(self) -> dict[int, float]:
        """Accuracy after the last epoch, by seed."""
        return {run.cell.seed: run.last for run in self.runs}

    @property
    def from_published(self) -> float | None:
        """Difference of the mean from the published number."""
        if self.last is None or self.published is None or self.published.top1 is None:
            return None
        return self.last.mean - self.published.top1


@dataclass(frozen=True)
class Difference(Comparison):
    """How the runs of two methods differ.

    Attributes:
        left_out: number of runs without a partner in a paired comparison; then the means of all runs differ otherwise.
    """

    left_out: int


class TrackSummary:
    """The tables of one track.

    Attributes:
        name: of the track.
        track: its definition, where this package has it.
        runs: its records.
        pairs: columns of its tables.
        methods: rows of its tables.
    """

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name = name
        self.track: Track | None = load_track(name) if name in list_tracks() else None
        self.runs = list(runs)
        self._groups: dict[tuple[str | None, str, str], list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: run.cell.seed):
            cell = run.cell
            self._groups.setdefault((cell.teacher, cell.student, cell.method), []).append(run)
        self.pairs = self._pairs()
        self.methods = self._methods()

    def _pairs(self) -> list[Pair]:
        known = list(self.track.pairs) if self.track else []
        seen = sorted({Pair(t, s) for t, s, _ in self._groups if t is not None})
        return known + [pair for pair in seen if pair not in known]

    def _methods(self) -> list[str]:
        known = [TEACHER, ALONE, *(TABLE_METHODS if self.published else [])]
        if self.track and not self.published:
            known += self.track.methods()
        seen = {method for _, _, method in self._groups}
        order = [*known, *METHODS, *sorted(seen)]
        return [m for m in dict.fromkeys(order) if m in known or m in seen]

    @property
    def published(self) -> bool:
        """Whether its numbers may stand beside the published ones."""
        return self.track is not None and self.track.published

    @property
    def title(self) -> str:
        """For people."""
        return self.track.title if self.track else self.name

    @property
    def note(self) -> str:
        """What to know before comparing its numbers."""
        return self.track.note if self.track else ""

    def entry(self, pair: Pair, method: str) -> Entry:
        """One cell of a table; the runs of teachers and of students alone belong to all their pairs."""
        if method == TEACHER:
            key: tuple[str | None, str, str] = (None, pair.teacher, TEACHER)
        elif method == ALONE:
            key = (None, pair.student, ALONE)
        else:
            key = (*pair, method)
        found = published(published_row(method) or "", pair) if self.published else None
        return Entry(pair, method, tuple(self._groups.get(key, ())), found)

    def against(self, pair: Pair, method: str, other: str) -> Difference | None:
        """A method against another one on a pair."""
        values, baseline = self.entry(pair, method).by_seed, self.entry(pair, other).by_seed
        found = compare(values, baseline)
        if found is None:
            return None
        left_out = max(len(values), len(baseline)) - found.n if found.paired else 0
        return Difference(**vars(found), left_out=left_out)

    @cached_property
    def warnings(self) -> list[str]:
        """Groups whose runs should not be taken together, or are not what the track says; in words."""
        found = []
        known_track = standard(self.name)
        for (teacher, student, method), runs in self._groups.items():
            name = f"{f'{teacher} → ' if teacher else ''}{student}, {method}"
            kinds = dict.fromkeys(key_of(run.details) for run in runs)
            if len(kinds) > 1:
                found.append(f"{name}: runs that differ in {differences(kinds)}")
            faults = [known_track.faults(run.cell, run.details) for run in runs] if known_track else []
            wrong = [fault for fault in faults if fault]
            if wrong:
                found.append(
                    f"{name}: {len(wrong)} of {len(runs)} are not of this track ({'; '.join(wrong[0])})"
                )
        if len(found) > _MOST_WARNINGS:
            found[_MOST_WARNINGS:] = [f"and {len(found) - _MOST_WARNINGS} more, see `itrd bench check`"]
        return [warning[:_LONGEST_WARNING] for warning in found]

    def hardware(self) -> list[tuple[str, int]]:
        """What the runs ran on, and how many on each."""
        return Counter(run.hardware for run in self.runs).most_common()


def summaries(ledger: Ledger) -> list[TrackSummary]:
    """All tracks with records, and the package's tracks without; published ones first."""
    names = dict.fromkeys([*list_tracks(), *ledger.tracks()])
    found = [TrackSummary(name, ledger.runs(name)) for name in names]
    return sorted(found, key=lambda summary: not summary.published)


def published_row(method: str) -> str | None:
    """Row of the published tables that a method belongs to."""
    rows = {TEACHER: "teacher", ALONE: "student alone", **TABLE_METHODS}
    return rows.get(method)


def title_of(method: str) -> str:
    """Name of a method for people."""
    row = published_row(method)
    if row is not None:
        return row[0].upper() + row[1:]
    name, at, variant = method.partition("@")
    if name not in METHODS:
        return method
    return f"{published_row(name) or method_class(name).title}{f' ({variant})' if at else ''}"

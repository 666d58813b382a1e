"""Cells: the single runs of a track, in order of priority, and the settings of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from itrd.bench.tracks import ALONE, DISTILLATION, TEACHER, Track, list_tracks
from itrd.data import list_datasets
from itrd.engine.config import LIBRARIES, DistillConfig, RunConfig, TrainConfig
from itrd.errors import UnknownNameError, UserError
from itrd.methods import create_objective, list_methods
from itrd.models import list_models
from itrd.recipes import Pair

_NO_FOLDERS = str.maketrans("/:", "__")  # a network's name may have these, a file's must not


@dataclass(frozen=True)
class Cell:
    """One run of a track.

    A student alone has no teacher: pairs that share a student share these cells.

    Attributes:
        track: its name.
        teacher: the teacher's network; for a teacher's own cell, and for a student alone, None.
        student: the network that is trained.
        method: registry name, ``name@variant``, ``none`` or ``teacher``.
        seed: of the run.
    """

    track: str
    teacher: str | None
    student: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its record and of its run folder."""
        if self.method == TEACHER:
            return f"teacher-{self.student}".translate(_NO_FOLDERS)
        parts = [self.teacher, self.student, self.method, f"seed{self.seed}"]
        return "-".join(part for part in parts if part).translate(_NO_FOLDERS)

    def __str__(self) -> str:
        return f"{self.track}/{self.name}"

    def as_record(self) -> dict[str, Any]:
        """What a run's record says of its cell."""
        names = ("track", "teacher", "student", "method", "seed")
        return {name: getattr(self, name) for name in names}

    def command(self) -> str:
        """The command that reproduces this one cell; a track of one's own is taken to lie in a file of its name."""
        track = self.track if self.track in list_tracks() else f"{self.track}.yaml"
        words = ["itrd bench run", f"--track {track}", f"--methods {self.method}"]
        pair = self.student if self.teacher is None else f"{self.teacher}:{self.student}"
        words += [f"--pairs {pair}", f"--seeds {self.seed}"]
        return " ".join(words)


def cells_of(track: Track) -> Iterator[Cell]:
    """All cells of a track in order of priority: teachers, then wave by wave."""
    for arch in dict.fromkeys(pair.teacher for pair in track.pairs):
        yield Cell(track.name, None, arch, TEACHER, int(track.teacher.get("seed", 0)))
    seen: set[Cell] = set()
    for wave in track.waves:
        for seed in wave.seeds:
            for method in wave.methods:
                for pair in track.pairs:
                    if method == ALONE:
                        cell = Cell(track.name, None, pair.student, ALONE, seed)
                    elif track.loss(method, pair) is None:
                        continue
                    else:
                        cell = Cell(track.name, *pair, method, seed)
                    if cell not in seen:
                        seen.add(cell)
                        yield cell


def config_of(track: Track, cell: Cell, **where: Any) -> RunConfig:
    """Settings of a cell's run; ``where`` gives run folder, device and the like."""
    fixed = {"data": track.data, "tensorboard": False, **track.settings}
    if cell.method == TEACHER:
        fixed = {key: value for key, value in fixed.items() if key not in DISTILLATION}
        settings = {**fixed, **track.teacher, "seed": cell.seed, **where}
        return TrainConfig(model=cell.student, **settings)
    settings = {**fixed, **track.student, "seed": cell.seed, **where}
    if cell.teacher is None:
        alone = {key: value for key, value in settings.items() if key not in DISTILLATION}
        return TrainConfig(model=cell.student, **alone)
    loss = track.loss(cell.method, Pair(cell.teacher, cell.student))
    assert loss is not None
    return DistillConfig(
        teacher=track.network_name(cell.teacher), student=cell.student, method=loss, **settings
    )


def check_cells(track: Track) -> None:
    """Refuse a track that no cell, or not every cell, could be run of, before anything is.

    Raises:
        UserError: an unknown network or dataset, or settings or a loss that cannot be.
    """
    for name in dict.fromkeys(name for pair in track.pairs for name in pair):
        prefix = name.partition(":")[0]
        if prefix not in LIBRARIES and prefix not in list_models():
            raise UnknownNameError("model", name, list_models())
    if (
        not re.search("[/:.]", track.data)
        and track.data not in list_datasets()
        and not Path(track.data).exists()
    ):
        raise UnknownNameError("dataset", track.data, list_datasets())
    for cell in dict.fromkeys(replace(cell, seed=0) for cell in cells_of(track)):
        config = config_of(track, cell)
        if isinstance(config, DistillConfig):
            objective = create_objective(config.method, config.ce_weight)
            name = cell.method.partition("@")[0]
            if name in list_methods() and name not in {method.name for method in objective.methods}:
                raise UserError(
                    f"track {track.name} calls the loss {config.method} {cell.method}, which is the name of a method "
                    "that is not in it; give it another name in loss_of and waves"
                )


@dataclass(frozen=True)
class Selection:
    """Which cells are meant: those that satisfy every condition that is set.

    Attributes:
        pairs: ``teacher:student``, or one network, which stands for every pair with it.
        methods: names of methods; ``teacher`` for teachers.
        seeds: of the students; teachers have the seed of their track.
    """

    pairs: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    @staticmethod
    def parse(pairs: str | None, methods: str | None, seeds: str | None) -> Selection:
        """Read comma-separated lists; seeds may be ranges, as in ``0-2,4``.

        Raises:
            UserError: not such a list.
        """
        chosen = {"pairs": _split(pairs), "methods": _split(methods)}
        for what, given in (("pairs", pairs), ("methods", methods)):
            if given is not None and not chosen[what]:
                raise UserError(f"no {what} are named in {given!r}; leave --{what} out for all of them")
        try:
            numbers = tuple(number for part in _split(seeds) for number in _range(part))
        except ValueError:
            numbers = ()
        if seeds is not None and not numbers:
            raise UserError(f"seeds are numbers and ranges, as in 0-2,4; got {seeds!r}")
        return Selection(**chosen, seeds=numbers)

    def filter(self, cells: Iterable[Cell], track: Track) -> list[Cell]:
        """Keep the cells that are meant.

        Raises:
            UserError: a pair or method that the track does not have.
        """
        cells = list(cells)
        networks = {name for pair in track.pairs for name in pair}
        for wanted in self.pairs:
            if wanted not in networks and wanted not in {f"{t}:{s}" for t, s in track.pairs}:
                known = ", ".join(f"{t}:{s}" for t, s in track.pairs)
                raise UserError(f"track {track.name} has no pair {wanted!r}; it has {known}")
        for method in self.methods:
            if method != TEACHER and method not in track.methods():
                raise UserError(
                    f"track {track.name} has no method {method!r}; it has {', '.join(track.methods())}"
                )
        return [cell for cell in cells if self._keeps(cell, track)]

    def _keeps(self, cell: Cell, track: Track) -> bool:
        if self.methods and cell.method not in self.methods:
            return False
        if self.seeds and cell.method != TEACHER and cell.seed not in self.seeds:
            return False
        return not self.pairs or any(self._in_pair(cell, track, wanted) for wanted in self.pairs)

    @staticmethod
    def _in_pair(cell: Cell, track: Track, wanted: str) -> bool:
        """Whether a cell is of a pair: a teacher's cell of all its pairs, a student's alone of all of its own."""
        teacher, _, student = wanted.partition(":")
        for pair in track.pairs:
            if wanted in pair or (student and pair == (teacher, student)):
                if cell.method == TEACHER and cell.student == pair.teacher:
                    return True
                if cell.teacher is None and cell.method != TEACHER and cell.student == pair.student:
                    return True
                if (cell.teacher, cell.student) == pair:
                    return True
        return False


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _range(text: str) -> range:
    low, dash, high = text.partition("-")
    found = range(int(low), int(high if dash else low) + 1)
    if not found:
        raise ValueError("it ends before it begins")
    return found

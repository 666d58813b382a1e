"""The runner: takes cells in order of priority, trains them, writes their records.

Everything that several runners share is on disk: records, claims, and the teachers' zoo. A runner can be killed at
any moment: its run folders resume at their last whole epoch, its claim is recognised as stale, and a record exists
whole or not at all.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from itrd.bench import teachers
from itrd.bench.cells import Cell, cells_of, config_of
from itrd.bench.claims import Claim, Claims
from itrd.bench.ledger import RESULTS, Ledger
from itrd.bench.tracks import TEACHER, Track
from itrd.bench.watch import Watch
from itrd.data.datasets import ImageDataset
from itrd.data.opening import Reading
from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.inputs import get_data
from itrd.engine.interrupt import received
from itrd.engine.networks import TrainedNetwork, load_network
from itrd.engine.record import Epoch
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.together import Seat
from itrd.engine.trainer import Interrupted, Trainer
from itrd.engine.zoo import ZOO
from itrd.errors import DataError, ItrdError, RunFolderError
from itrd.files import read_json

POLL = 15.0  # seconds between looks at what other runners have finished
_FAILURES = (ItrdError, RuntimeError, OSError)  # of one cell: out of memory, a folder that cannot be written


@dataclass
class Options:
    """How a runner works.

    Attributes:
        results: folder of the ledger.
        runs: folder of the run folders; cell NAME of a track runs in TRACK/NAME.
        zoo: folder of the teachers.
        data_root: folder that holds the datasets.
        device: auto, cpu, cuda or cuda:N.
        budget: seconds after which the runner has ended; None for no limit.
        teacher_table: folder for tables of teacher outputs, or None.
        progress: show a progress display for each run.
        together: number of runs that take turns in this process, see :mod:`itrd.engine.together`.
    """

    results: Path = RESULTS
    runs: Path = Path("runs")
    zoo: Path = ZOO
    data_root: str = "data"
    device: str = "auto"
    budget: float | None = None
    teacher_table: str | None = None
    progress: bool = False
    together: int = 1


@dataclass
class _Work:
    """A cell at work: its claim, its run, and what has to be left when it ends."""

    cell: Cell
    claim: Claim
    held: ExitStack
    seat: Seat
    started: float


@dataclass
class Report:
    """What a runner did.

    Attributes:
        done: cells that it finished.
        skipped: cells that it could not do, with the reason.
        failed: cells that it tried in vain, with the error.
        left: number of cells that are still to do, those of other runners included.
        stopped: why it ended early: ``budget``, ``signal``, or None.
        signal: number of the signal.
    """

    done: list[Cell] = field(default_factory=list)
    skipped: dict[Cell, str] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    left: int = 0
    stopped: str | None = None
    signal: int | None = None


class Runner:
    """Works through cells of a track.

    Args:
        track: what the cells are of.
        cells: which, in order of priority.
        options: how.
    """

    def __init__(self, track: Track, cells: list[Cell], options: Options) -> None:
        self.track = track
        self.cells = cells
        self.options = options
        self.ledger = Ledger(options.results)
        self.claims = Claims(options.results)
        self.watch = Watch(options.budget)
        self.report = Report()
        self._data: dict[tuple, ImageDataset] = {}
        self._teachers: dict[str, TrainedNetwork] = {}
        self._working: list[_Work] = []
        self._teacher_cells = {c.student: c for c in cells_of(track) if c.method == TEACHER}

    def run(self) -> Report:
        """Work until everything is done, the budget is spent, or :mod:`itrd.engine.interrupt` knows of a signal."""
        with self.watch:
            try:
                self._work_through()
            finally:
                for work in self._working:  # something unforeseen came out of one of them
                    work.seat.close()
                    work.held.close()
        self.report.stopped = self.watch.stopped
        self.report.signal = received() or None
        self.report.left = len(self.open_cells()) + len(self.report.failed)
        return self.report

    def _work_through(self) -> None:
        look_again = 0.0  # when to look for a cell to begin with; looking reads the ledger
        while True:
            free = self.options.together - len(self._working)
            if free and not self.watch.stopped and time.monotonic() >= look_again:
                if self._begin_one():
                    continue
                look_again = time.monotonic() + POLL
            if self._working:
                for work in list(self._working):
                    if self._advance(work):
                        look_again = 0.0
            elif self.watch.stopped or not self._wait_for_teachers():
                return
            else:
                look_again = 0.0

    def open_cells(self) -> list[Cell]:
        """What is still to do, as far as this runner did not fail at it."""
        done = self.ledger.done(self.track.name)
        return [
            cell
            for cell in self.cells
            if cell not in self.report.failed and (cell not in done or self._lacks_teacher_file(cell))
        ]

    def _lacks_teacher_file(self, cell: Cell) -> bool:
        """Whether a teacher is in the ledger and not yet in the zoo, and its weights lie here."""
        folder = self._run_folder(cell)
        return (
            cell.method == TEACHER
            and not teachers.is_there(self.track, cell.student, self.options.zoo)
            and (folder / "last.safetensors").is_file()
            and (folder / "result.json").is_file()
        )

    def _begin_one(self) -> bool:
        """Begin with the first cell that can be done; return whether anything has changed."""
        self.report.skipped = {}
        mine = {work.cell for work in self._working}
        for cell in self.open_cells():
            if cell in mine:
                continue
            reason = self._missing(cell)
            if reason:
                self.report.skipped[cell] = reason
                continue
            claim = self.claims.take(cell)
            if claim is None:
                self.report.skipped[cell] = "another runner has it"
                continue
            with ExitStack() as held:
                held.enter_context(claim)
                if cell not in self.open_cells():  # somebody finished it since we looked
                    return True
                if not self.watch.time_for_another():
                    self.watch.stop()
                    return False
                self._begin(cell, claim, held)
            return True
        return False

    def _missing(self, cell: Cell) -> str | None:
        """Why a cell cannot be done now; None if it can."""
        path = self.ledger.path(cell)
        if path in self.ledger.unreadable:
            return f"a damaged record is in its place: {path}"
        if cell.teacher is None or teachers.is_there(self.track, cell.teacher, self.options.zoo):
            return None
        name = self.track.network_name(cell.teacher)
        return f"no teacher {self.options.zoo / name}.safetensors (--methods teacher trains it)"

    def _wait_for_teachers(self) -> bool:
        """Wait a little if another runner is training a teacher that some of our cells need."""
        wanted = {cell.teacher for cell in self.open_cells() if self._missing(cell)}
        if not any(self.claims.is_taken(self._teacher_cells[name]) for name in wanted if name):
            return False
        return self.watch.sleep(POLL)

    def _begin(self, cell: Cell, claim: Claim, held: ExitStack) -> None:
        """Prepare a cell's run and give it a seat, or take what its folder holds if it was trained before."""
        started, folder = time.monotonic(), self._run_folder(cell)
        try:
            if (folder / "result.json").is_file():
                self._check_same_run(cell, folder)
                say(
                    f"{cell}: taken from the finished run in {folder}, nothing is trained; for a fresh run choose "
                    "another folder with --out"
                )
                self._finish(cell, claim, started)
                return
            say(f"{cell}: starts")
            trainer = held.enter_context(self._prepared(cell, folder))
        except DataError:  # would meet every cell
            raise
        except _FAILURES as error:
            self._failed(cell, error)
            return
        self.watch.no_stop_during(time.monotonic() - started)
        trainer.record["cell"] = cell.as_record()
        held.enter_context(self.watch.over(trainer, claim))
        self._working.append(_Work(cell, claim, held.pop_all(), Seat(trainer), started))

    def _advance(self, work: _Work) -> bool:
        """Take some steps of a cell; return whether its seat is free again."""
        try:
            if not work.seat.advance(alone=self.options.together == 1):
                return False
            self._finish(work.cell, work.claim, work.started)
        except Interrupted as interruption:
            say(f"{work.cell}: {interruption}; the next runner continues it")
        except DataError:
            raise
        except _FAILURES as error:
            self._failed(work.cell, error)
        self._working.remove(work)
        work.held.close()
        return True

    def _failed(self, cell: Cell, error: Exception) -> None:
        self.report.failed[cell] = " ".join(str(error).split())
        say(f"{cell}: failed: {self.report.failed[cell]}")

    def _check_same_run(self, cell: Cell, folder: Path) -> None:
        """Refuse the result of another run: a record cannot be taken back.

        Raises:
            RunFolderError: the folder's result has other settings, data or teacher than the cell.
        """
        wanted = json.loads(json.dumps(self._config(cell).resolved().identity()))
        wanted["content of the data"] = self._dataset(cell).fingerprint
        wanted["weights of the teacher"] = self._teacher(cell).sha256 if cell.teacher else None
        start = self._config(cell).initial_weights
        wanted["first weights"] = None if start is None else load_network(cell.student).sha256
        try:
            result = read_json(folder / "result.json")
            found = dict(result["settings"])
            found["content of the data"] = result["data"]["fingerprint"]
            found["weights of the teacher"] = (result.get("teacher") or {}).get("sha256")
            found["first weights"] = (result.get("student") or {}).get("sha256")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunFolderError(
                f"{folder / 'result.json'} is damaged; choose another folder with --out"
            ) from None
        different = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
        if different:
            raise RunFolderError(
                f"{folder} holds the result of another run (other {', '.join(different)}); move it away, or choose "
                "another folder with --out"
            )

    def _finish(self, cell: Cell, claim: Claim, started: float) -> None:
        """Write a trained cell's record, and its weights if it is a teacher."""
        folder = self._run_folder(cell)
        result: dict[str, Any] = read_json(folder / "result.json")
        if not claim.touch():
            say(f"{cell}: another runner has taken this cell over; nothing is written")
            return
        if cell.method == TEACHER:
            teachers.publish(self.track, cell, folder, self._dataset(cell), result, self.options)
        self.ledger.add(cell, result)
        for name in ("checkpoint.pt", "checkpoint.prev.pt"):  # nothing will resume this run
            (folder / name).unlink(missing_ok=True)
        self.report.done.append(cell)
        top1 = result["last"]["test"]["top1"]
        say(f"{cell}: {top1:.2f}% after the last epoch, {time.monotonic() - started:.0f} s here")

    def _run_folder(self, cell: Cell) -> Path:
        return self.options.runs / self.track.name / cell.name

    def _config(self, cell: Cell) -> RunConfig:
        folder, options = self._run_folder(cell), self.options
        where: dict[str, Any] = {
            "out": str(folder),
            "resume": (folder / "config.yaml").is_file(),
            "device": options.device,
            "data_root": options.data_root,
            "progress": options.progress,
        }
        if cell.teacher is not None and options.teacher_table:
            where["teacher_table"] = options.teacher_table
        return config_of(self.track, cell, **where)

    def _dataset(self, cell: Cell) -> ImageDataset:
        """The cell's data, read once for all cells."""
        config = self._config(cell).resolved()
        names = ["data", "train_subset", "test_subset", "normalisation", *(f.name for f in fields(Reading))]
        key = tuple(getattr(config, name) for name in names)
        if key not in self._data:
            self._data = {key: get_data(config)}
        return self._data[key]

    def _prepared(self, cell: Cell, folder: Path) -> AbstractContextManager[Trainer]:
        config, data = self._config(cell), self._dataset(cell)
        if isinstance(config, DistillConfig):
            return prepare_distill(config, [self._epoch_done], teacher=self._teacher(cell), data=data)
        assert isinstance(config, TrainConfig)
        return prepare_train(config, [self._epoch_done], data=data)

    def _teacher(self, cell: Cell) -> TrainedNetwork:
        """Runs side by side share a teacher's weights; nobody changes them."""
        assert cell.teacher is not None
        path = str(teachers.path_of(self.track, cell.teacher, self.options.zoo))
        if path not in self._teachers:
            self._teachers = {path: load_network(path)}
        return self._teachers[path]

    def _epoch_done(self, trainer: Trainer, epoch: Epoch) -> None:
        # An evaluation cannot be interrupted: the budget has to leave room for one.
        self.watch.no_stop_during(epoch.evaluation_seconds)


def say(text: str) -> None:
    """Tell what is going on, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

"""The runner: takes cells in order of priority, trains them, writes their records.

Everything that several runners share is on disk: records, claims, and the teachers' zoo. A runner can be killed at
any moment: its run folders resume at their last whole epoch, its claim is recognised as stale, and a record exists
whole or not at all.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itrd.bench import teachers
from itrd.bench.cells import Cell, cells_of, config_of
from itrd.bench.claims import Claim, Claims
from itrd.bench.ledger import RESULTS, Ledger
from itrd.bench.tracks import TEACHER, Track
from itrd.bench.watch import Watch
from itrd.data.datasets import ImageDataset
from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.networks import load_network
from itrd.engine.record import Epoch
from itrd.engine.run import get_data, prepare_distill, prepare_train
from itrd.engine.trainer import Interrupted, Trainer
from itrd.engine.zoo import ZOO
from itrd.errors import DataError, ItrdError

POLL = 15.0  # seconds between looks at what other runners have finished


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
    """

    results: Path = RESULTS
    runs: Path = Path("runs")
    zoo: Path = ZOO
    data_root: str = "data"
    device: str = "auto"
    budget: float | None = None
    teacher_table: str | None = None
    progress: bool = False


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
        self._teacher_cells = {c.student: c for c in cells_of(track) if c.method == TEACHER}

    def request_stop(self) -> None:
        """Stop after the current step, with everything saved."""
        self.watch.stop("signal")

    def run(self) -> Report:
        """Work until everything is done, the budget is spent, or somebody asks to stop."""
        with self.watch:
            while not self.watch.stopped:
                progress = self._one_pass()
                if not progress and not self._wait_for_teachers():
                    break
        self.report.stopped = self.watch.stopped
        self.report.left = len(self._open_cells()) + len(self.report.failed)
        return self.report

    def _open_cells(self) -> list[Cell]:
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

    def _one_pass(self) -> bool:
        """Do the first cell that can be done; return whether there was one."""
        self.report.skipped = {}
        for cell in self._open_cells():
            reason = self._missing(cell)
            if reason:
                self.report.skipped[cell] = reason
                continue
            claim = self.claims.take(cell)
            if claim is None:
                self.report.skipped[cell] = "another runner has it"
                continue
            with claim:
                if cell not in self._open_cells():  # somebody finished it since we looked
                    return True
                if not self.watch.time_for_another():
                    self.watch.stop("budget")
                    return False
                self._do(cell, claim)
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
        wanted = {cell.teacher for cell in self._open_cells() if self._missing(cell)}
        if not any(self.claims.is_taken(self._teacher_cells[name]) for name in wanted if name):
            return False
        return self.watch.sleep(POLL)

    def _do(self, cell: Cell, claim: Claim) -> None:
        say(f"{cell}: starts")
        started = time.monotonic()
        try:
            finished = self._train(cell, claim)
        except Interrupted as interruption:
            say(f"{cell}: {interruption}; the next runner continues it")
            return
        except DataError:  # would meet every cell
            raise
        except (ItrdError, RuntimeError) as error:  # RuntimeError: out of memory, for one
            self.report.failed[cell] = " ".join(str(error).split())
            say(f"{cell}: failed: {self.report.failed[cell]}")
            return
        if finished is not None:
            self.report.done.append(cell)
            top1 = finished["last"]["test"]["top1"]
            say(f"{cell}: {top1:.2f}% after the last epoch, {time.monotonic() - started:.0f} s here")

    def _train(self, cell: Cell, claim: Claim) -> dict[str, Any] | None:
        folder = self._run_folder(cell)
        if not (folder / "result.json").is_file():  # a killed runner may have come as far as this
            preparing = time.monotonic()
            with self._prepared(cell, folder) as trainer:
                self.watch.no_stop_during(time.monotonic() - preparing)
                trainer.record["cell"] = cell.as_record()
                with self.watch.over(trainer, claim):
                    trainer.fit()
        result = json.loads((folder / "result.json").read_text())
        if not claim.touch():
            say(f"{cell}: another runner has taken this cell over; nothing is written")
            return None
        if cell.method == TEACHER:
            teachers.publish(self.track, cell, folder, self._dataset(cell), result, self.options)
        self.ledger.add(cell, result)
        for name in ("checkpoint.pt", "checkpoint.prev.pt"):  # nothing will resume this run
            (folder / name).unlink(missing_ok=True)
        return result

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
        config = self._config(cell)
        key = (config.data, config.train_subset, config.test_subset, config.normalisation)
        if key not in self._data:
            self._data = {key: get_data(config.resolved())}
        return self._data[key]

    def _prepared(self, cell: Cell, folder: Path) -> AbstractContextManager[Trainer]:
        config, data = self._config(cell), self._dataset(cell)
        if isinstance(config, DistillConfig):
            assert cell.teacher is not None
            teacher = load_network(str(teachers.path_of(self.track, cell.teacher, self.options.zoo)))
            return prepare_distill(config, [self._epoch_done], teacher=teacher, data=data)
        assert isinstance(config, TrainConfig)
        return prepare_train(config, [self._epoch_done], data=data)

    def _epoch_done(self, trainer: Trainer, epoch: Epoch) -> None:
        # An evaluation cannot be interrupted: the budget has to leave room for one.
        self.watch.no_stop_during(epoch.evaluation_seconds)


def say(text: str) -> None:
    """Tell what is going on, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

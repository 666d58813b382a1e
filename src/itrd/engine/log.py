"""What a run tells while it runs: a display for people, JSONL and TensorBoard for programs."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from itrd.engine.folder import RunFolder
from itrd.files import write_atomically

if TYPE_CHECKING:
    from itrd.engine.record import Epoch


class EpochLog:
    """Per-epoch metrics: ``metrics.jsonl`` and TensorBoard events in the run folder.

    Epochs of first stages come first, with ``stage`` naming the method; in TensorBoard they are a run of their own,
    ``first-stage-METHOD``. On resume everything is cut back to the epochs that the checkpoint knows.
    """

    def __init__(self, folder: RunFolder | None, history: list[dict[str, Any]], *, tensorboard: bool) -> None:
        self._folder = folder
        self._tensorboard = tensorboard and folder is not None
        self._writers: dict[str, Any] = {}  # stage -> TensorBoard writer
        self._known = Counter(epoch["stage"] for epoch in history)
        if folder is not None:
            write_atomically(folder.metrics, "".join(map(_line, history)).encode())

    def add(self, epoch: dict[str, Any]) -> None:
        """Write one epoch."""
        if self._folder is None:
            return
        with self._folder.metrics.open("a") as file:
            file.write(_line(epoch))
        if self._tensorboard:
            writer = self._writer(epoch["stage"])
            for name, value in _scalars(epoch).items():
                writer.add_scalar(name, value, epoch["epoch"])
            writer.flush()

    def _writer(self, stage: str) -> Any:
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            assert self._folder is not None
            place = self._folder.path if stage == "main" else self._folder.path / f"first-stage-{stage}"
            self._writers[stage] = SummaryWriter(str(place), purge_step=self._known[stage] + 1)
        return self._writers[stage]

    def close(self) -> None:
        """Finish the TensorBoard files."""
        for writer in self._writers.values():
            writer.close()


def _line(epoch: dict[str, Any]) -> str:
    return json.dumps(epoch) + "\n"


def _scalars(epoch: dict[str, Any]) -> dict[str, float]:
    flat = {"learning_rate": epoch["learning_rate"], "images_per_second": epoch["images_per_second"]}
    for group in ("train", "test", "ema"):
        flat |= {f"{group}/{name}": value for name, value in epoch[group].items()}
    return flat


class Quiet:
    """A display that shows nothing."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *details: object) -> None:
        """Do nothing."""

    def start(self, stage: str, epochs: int) -> None:
        """A stage begins."""

    def step(self, epoch: int, images: int) -> None:
        """One step is done; ``images`` of this epoch are."""

    def epoch(self, epoch: Epoch) -> None:
        """One epoch is done."""

    def message(self, text: str) -> None:
        """Print a line on standard error: what is said here matters without a display, too."""
        print(text, file=sys.stderr)


class Silent(Quiet):
    """A display that says nothing either."""

    def message(self, text: str) -> None:
        """Do nothing."""


class Console(Quiet):
    """Progress on standard error: a live bar in a terminal, one line per epoch everywhere."""

    def __init__(self, images_per_epoch: int) -> None:
        self._images = images_per_epoch
        self._console = RichConsole(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]:,.0f} images/s, left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,  # standard output may go to a file
            disable=not self._console.is_terminal,
        )
        self._stage = ""
        self._epochs = 0
        self._task: TaskID | None = None
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Console:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def start(self, stage: str, epochs: int) -> None:
        """Begin a bar for a stage."""
        self._stage, self._epochs, self._first = stage, epochs, None
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=epochs * self._images, rate=0.0)

    def step(self, epoch: int, images: int) -> None:
        """Advance the bar."""
        if self._progress.disable or self._task is None:
            return
        now, completed = time.perf_counter(), (epoch - 1) * self._images + images
        if self._first is None:
            self._first = now, completed
        seconds = now - self._first[0]
        rate = (completed - self._first[1]) / seconds if seconds > 0 else 0.0
        self._progress.update(
            self._task, completed=completed, rate=rate, description=f"epoch {epoch}/{self._epochs}"
        )

    def epoch(self, epoch: Epoch) -> None:
        """Print the epoch's line."""
        number = f"{epoch.epoch:>{len(str(self._epochs))}}/{self._epochs}"
        terms = [f"{name} {value:.3f}" for name, value in epoch.train.items() if not name.startswith("top")]
        if epoch.stage == "main":
            average = [f"average {epoch.ema['top1']:.2f}%"] if epoch.ema else []
            head = [
                f"epoch {number}",
                *([f"test {epoch.test['top1']:.2f}%"] if epoch.test else []),
                *average,
                *([f"train {epoch.train['top1']:.2f}%"] if "top1" in epoch.train else []),
            ]
        else:
            head = [f"{epoch.stage}, first stage, epoch {number}"]
        if epoch.skipped:
            terms.append(f"{epoch.skipped} steps skipped")
        tail = [f"lr {epoch.learning_rate:g}", f"{epoch.images_per_second:,.0f} images/s"]
        self._console.print("  ".join([*head, *terms, *tail]), soft_wrap=True)

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True)

"""Records of the ledger: one run each, in JSON, small enough to keep in version control.

A record says what ``result.json`` of the run folder says, with the curve as columns and numbers rounded to six
significant digits (a test accuracy on 10,000 images has four). Format 1 is ``result.json`` itself, which the ledger
takes as well. ``record.schema.json`` describes both.
"""

from __future__ import annotations

import json
import math
import statistics
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itrd.bench.cells import Cell
from itrd.bench.tracks import ALONE, TEACHER
from itrd.errors import UserError
from itrd.files import MAX_JSON, read_limited

LEDGER_FORMAT = 2
_GROUPS = ("train", "test", "ema")  # dictionaries inside an epoch


class RecordError(UserError):
    """A file of the ledger is not a record."""


@dataclass(slots=True)
class Run:
    """What tables and the report need of one record.

    Attributes:
        cell: which cell it fills.
        path: its file.
        last: test accuracy after the last epoch, percent: the result.
        best: the highest of all epochs, chosen on the test set.
        best_epoch: its number.
        top1: test accuracy after every epoch.
        train_top1: training accuracy of every epoch.
        seconds: of training.
        wall_seconds: with evaluations; None where the record does not say.
        images_per_second: median over the epochs.
        hardware: what it ran on.
        precision: fp32, tf32 or bf16.
        teacher_sha256: checksum of the teacher's file.
        details: the record without its curves.
    """

    cell: Cell
    path: Path
    last: float
    best: float
    best_epoch: int
    top1: array
    train_top1: array
    seconds: float
    wall_seconds: float | None
    images_per_second: float
    hardware: str
    precision: str
    teacher_sha256: str | None
    details: dict[str, Any] = field(repr=False)


def compact(result: Mapping[str, Any]) -> dict[str, Any]:
    """Make a record from the content of a ``result.json``, whose run has named its cell."""
    rest = {key: value for key, value in result.items() if key not in ("format", "curve", "first_stages")}
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for epoch in result["first_stages"]:
        stages.setdefault(epoch["stage"], []).append(epoch)
    return rounded(
        {
            "format": LEDGER_FORMAT,
            **rest,
            "curve": columns(result["curve"]),
            "first_stages": {name: columns(epochs) for name, epochs in stages.items()},
        }
    )


def columns(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn a list of epochs into one list per number, None where an epoch lacks it."""
    found: dict[str, Any] = {}
    for key in epochs[0]:
        if key in _GROUPS:
            names = dict.fromkeys(name for epoch in epochs for name in epoch[key])
            found[key] = {name: [epoch[key].get(name) for epoch in epochs] for name in names}
        elif key != "stage":
            found[key] = [epoch[key] for epoch in epochs]
    return found


def encode(record: Mapping[str, Any]) -> bytes:
    """Write a record: one line a key, so that versions compare well and curves stay short."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), allow_nan=False)}"
        for key, value in record.items()
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def rounded(value: Any) -> Any:
    """Return a value with its numbers as a record has them, of six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def parse(path: Path) -> dict[str, Any]:
    """Read the JSON of a record's file.

    Raises:
        RecordError: not JSON, not an object, or with a number that is not finite.
    """
    try:
        content = json.loads(read_limited(path, MAX_JSON), parse_constant=_refuse)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON, torn or damaged ({error})") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path}: not a record")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def read_run(path: Path) -> Run:
    """Read one record of either format.

    Raises:
        RecordError: not a record.
    """
    record = parse(path)
    try:
        return _run(record, path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise RecordError(f"{path}: not a record ({type(error).__name__}: {error})") from None


def _run(record: dict[str, Any], path: Path) -> Run:
    curve = curve_of(record)
    seconds = float(record["seconds"])
    rate = record.get("images_per_second", statistics.median(map(float, curve["images_per_second"])))
    wall = record.get("wall_seconds")
    details = {key: value for key, value in record.items() if key not in ("curve", "first_stages")}
    cell = cell_of(record, path)
    if cell.track != path.parent.name:
        raise ValueError(f"it is of the track {cell.track}")
    run = Run(
        cell=cell,
        path=path,
        last=float(record["last"]["test"]["top1"]),
        best=float(record["best"]["test"]["top1"]),
        best_epoch=int(record["best"]["epoch"]),
        top1=array("f", curve["test"]["top1"]),
        train_top1=array("f", curve["train"]["top1"]),
        seconds=seconds,
        wall_seconds=None if wall is None else float(wall),
        images_per_second=float(rate),
        hardware=str(record["provenance"]["hardware"]),
        precision=str(record["settings"]["precision"]),
        teacher_sha256=(record.get("teacher") or {}).get("sha256"),
        details=details,
    )
    if not all(map(math.isfinite, (run.last, run.best, run.seconds, run.images_per_second))):
        raise ValueError("a number that is too large")  # such as 1e999, which is JSON
    return run


def curve_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The main stage's curve as columns, whatever the record's format."""
    curve = record["curve"]
    return columns(curve) if isinstance(curve, list) else curve


def cell_of(record: Mapping[str, Any], path: Path) -> Cell:
    """The cell of a record. Where a run was not started by the benchmark, its settings and its file tell."""
    said = record.get("cell")
    if said is not None:
        teacher = said["teacher"]
        return Cell(
            str(said["track"]),
            None if teacher is None else str(teacher),
            str(said["student"]),
            str(said["method"]),
            int(said["seed"]),
        )
    settings, track = record["settings"], path.parent.name
    if record["kind"] == "train":
        method = TEACHER if path.name.startswith("teacher-") else ALONE
        return Cell(track, None, str(settings["model"]), method, int(settings["seed"]))
    teacher = str(record["teacher"]["arch"])
    return Cell(track, teacher, str(settings["student"]), str(settings["method"]), int(settings["seed"]))

"""Ledgers of made-up records, to test tables and report with. Never put one into results/: nothing was measured."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from itrd.bench.cells import Cell, cells_of, config_of
from itrd.bench.record import encode
from itrd.bench.tracks import TEACHER, Track, list_tracks, load_track
from itrd.engine.config import DistillConfig
from itrd.methods import create_objective

HARDWARE = "synthetic, not measured"
SHA = "0" * 64


def record(
    cell: Cell, epochs: int, *, hardware: str = HARDWARE, protocol: str = "protocol"
) -> dict[str, Any]:
    """One record in the ledger's format, with a curve of plausible shape."""
    rng = random.Random(repr(cell))
    level = 71 + random.Random(repr((cell.student, cell.method))).random() * 3
    level += rng.gauss(0, 0.2)
    top1 = []
    for epoch in range(1, epochs + 1):
        phase = epoch / epochs
        reached = level - (12 if phase < 0.62 else 3 if phase < 0.75 else 0) - 30 * math.exp(-12 * phase)
        top1.append(round(reached + rng.gauss(0, 0.15), 2))
    numbers = list(range(1, epochs + 1))
    train = [
        round(min(99.9, value + 15 * epoch / epochs), 3) for epoch, value in zip(numbers, top1, strict=True)
    ]
    loss = [round(4 * math.exp(-3 * epoch / epochs) + 0.01 * rng.random(), 5) for epoch in numbers]
    terms = {"ce": loss} if cell.teacher is None else {"ce": loss, "kd": [round(x / 3, 6) for x in loss]}
    rate = round(rng.uniform(900, 1100), 2)
    curve: dict[str, Any] = {
        "epoch": numbers,
        "learning_rate": [0.05 if e <= 0.62 * epochs else 0.005 for e in numbers],
        "train": {"loss": loss, **terms, "top1": train, "top5": [min(100.0, t + 8) for t in train]},
        "test": {"top1": top1, "top5": [min(100.0, round(t + 15, 2)) for t in top1], "loss": loss},
        "seconds": [round(50000 / rate + rng.random(), 4) for _ in numbers],
        "images_per_second": [rate] * epochs,
        "evaluation_seconds": [round(1 + rng.random(), 4) for _ in numbers],
    }

    def row(index: int) -> dict[str, Any]:
        return {
            key: {k: v[index] for k, v in value.items()} if isinstance(value, dict) else value[index]
            for key, value in curve.items()
        }

    seconds = sum(curve["seconds"])
    settings, objective = _settings(cell, epochs)
    data = str(settings["data"])
    found: dict[str, Any] = {
        "format": 2,
        "protocol": protocol,
        "settings": settings,
        "kind": "train" if cell.teacher is None else "distill",
        "cell": cell.as_record(),
        "data": {"name": data, "fingerprint": SHA, "train": 50000, "test": 10000},
        "parameters": 278324,
        "objective": objective,
        "device": "cpu",
        "provenance": {"itrd": "0", "commit": None, "python": "3", "torch": "2", "hardware": hardware},
        "command": "none: this record is synthetic",
        "finished": "2000-01-01T00:00:00+00:00",
        "images_per_second": rate,
        "seconds": round(seconds, 3),
        "wall_seconds": round(seconds * 1.1, 3),
        "last": row(-1),
        "best": row(max(range(epochs), key=lambda i: top1[i])),
        "curve": curve,
        "first_stages": {},
    }
    if cell.teacher is not None:
        test = {"top1": 75.0, "top5": 93.0, "loss": 1.0}
        found["teacher"] = {"arch": cell.teacher, "source": "zoo", "sha256": SHA, "test": test}
    return found


def _settings(cell: Cell, epochs: int) -> tuple[dict[str, Any], str]:
    """Settings and objective: those of the track where it is one of the package's and has the cell."""
    track = load_track(cell.track) if cell.track in list_tracks() else None
    known = track is not None and cell.method in (TEACHER, *track.methods())
    if track is not None and known and (cell.teacher is None or (cell.teacher, cell.student) in track.pairs):
        config = config_of(track, cell).resolved()
        loss = config.method if isinstance(config, DistillConfig) else "none"
        return {**config.identity(), "epochs": epochs}, create_objective(loss).describe()
    settings = {
        "data": "cifar100",
        "epochs": epochs,
        "batch_size": 64,
        "learning_rate": 0.05,
        "milestones": [150, 180, 210],
        "lr_decay": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "nesterov": False,
        "seed": cell.seed,
        "precision": "fp32",
        **({"model": cell.student} if cell.teacher is None else {"student": cell.student}),
    }
    return settings, "1*ce" if cell.teacher is None else f"1*ce + 1*{cell.method}"


def write(root: Path, cell: Cell, content: dict[str, Any]) -> Path:
    """Put a record where the ledger looks for it."""
    path = root / cell.track / f"{cell.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(content))
    return path


def fill(root: Path, track: str = "protocol", *, epochs: int = 240, count: int | None = None) -> int:
    """Fill a track's cells, over and over with further seeds until there are ``count`` records."""
    chosen = load_track(track)
    written, round_number = 0, 0
    while count is None or written < count:
        for cell in _round(chosen, round_number):
            label = "protocol" if chosen.published else "custom"
            write(root, cell, record(cell, epochs, protocol=label))
            written += 1
            if written == count:
                return written
        round_number += 1
        if count is None:
            break
    return written


def _round(track: Track, number: int) -> list[Cell]:
    first = list(cells_of(track))
    if number == 0:
        return first
    step = 1 + max(cell.seed for cell in first)
    return [
        Cell(c.track, c.teacher, c.student, c.method, c.seed + number * step)
        for c in first
        if c.method != TEACHER
    ]

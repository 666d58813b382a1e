"""What a run leaves behind: its epochs, its result, its record."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from torch import nn

from itrd.data.cifar import is_published
from itrd.data.datasets import ImageDataset
from itrd.engine.config import RunConfig
from itrd.engine.provenance import command_line, provenance
from itrd.engine.task import DistillTask

RECORD_FORMAT = 1


@dataclass
class Epoch:
    """What one epoch measured.

    Attributes:
        epoch: counted from 1.
        learning_rate: of this epoch.
        train: sample-weighted means over the epoch's augmented batches: loss, its unweighted terms, top1, top5.
        test: top1, top5 (percent) and loss on the test set after the epoch; empty in a first stage, and where no test
            image has a label.
        seconds: training time, evaluation not included.
        images_per_second: training images per second.
        stage: ``main``, or the method whose first stage this is.
        evaluation_seconds: time of the evaluation after the epoch.
        ema: what ``test`` says, of the moving average of the weights; empty without one.
        skipped: steps that were not taken because their loss or gradient was not finite; the means leave them out.
    """

    epoch: int
    learning_rate: float
    train: dict[str, float]
    test: dict[str, float]
    seconds: float
    images_per_second: float
    stage: str = "main"
    evaluation_seconds: float = 0.0
    skipped: int = 0
    ema: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """A finished run.

    Attributes:
        last: the last epoch: the result.
        best: the epoch with the highest test accuracy (the last one where no test image has a label). It is chosen on
            the test set, so it is optimistic: for comparison with
            sources that report it, never the headline.
        history: all epochs of the main stage.
        student: the trained network, with the weights of the last epoch.
        record: everything that ``result.json`` holds.
        comparison: what ``comparison.json`` holds, where several seeds or a control were asked for; then this is the
            distilled run of the first seed.
    """

    last: Epoch
    best: Epoch
    history: list[Epoch]
    student: nn.Module
    record: dict[str, Any] = field(repr=False)
    comparison: dict[str, Any] | None = field(default=None, repr=False)


def label_of(config: RunConfig, data: ImageDataset, *, processes: int = 1, skipped: int = 0) -> str:
    """Label a run by its settings (:meth:`itrd.engine.config.RunConfig.protocol`), its images, and what happened.

    Args:
        config: the settings.
        data: what was trained and tested on; other images, normalisation or augmentation than the published ones make
            the run ``custom``, whatever the dataset is called.
        processes: the most that worked on it: batch norms see parts of the published batches.
        skipped: steps that were left out.
    """
    label = config.protocol()
    if label == "custom" or not is_published(data):
        return "custom"
    if processes > 1:
        label += f", {processes} processes"
    if skipped:
        label += f", {skipped} step{'s' * (skipped > 1)} skipped"
    return label


def build_record(
    config: RunConfig,
    task: DistillTask,
    data: ImageDataset,
    device: str,
    history: list[Epoch],
    first_stages: list[Epoch],
    best: Epoch,
    extra: dict[str, Any],
    *,
    processes: int = 1,
) -> dict[str, Any]:
    """Assemble ``result.json``: settings, provenance, curve, last and best epoch.

    ``seconds`` is training alone, ``wall_seconds`` with evaluations; both summed over every part of a resumed run.
    """
    epochs = [*first_stages, *history]
    skipped = sum(e.skipped for e in epochs)
    # Of any part of a run that was resumed.
    parts = extra.get("provenances", [])
    compiled = config.compile or any(part.get("compile") for part in parts)
    most = max([processes, *(part.get("processes", 1) for part in parts)])
    return {
        "format": RECORD_FORMAT,
        "protocol": label_of(config, data, processes=most, skipped=skipped),
        "settings": config.identity(),
        **extra,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "test": len(data.test),
            **data.facts,
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "parameters": sum(p.numel() for p in task.student.parameters()),
        "objective": task.objective.describe(),
        "device": device,
        **({"processes": processes} if processes > 1 else {}),
        "provenance": provenance(device),
        "deterministic": config.deterministic,
        **({"compile": True} if compiled else {}),
        "skipped_steps": skipped,
        "command": command_line(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "images_per_second": statistics.median(e.images_per_second for e in history),
        "seconds": sum(e.seconds for e in epochs),
        "wall_seconds": sum(e.seconds + e.evaluation_seconds for e in epochs),
        "last": asdict(history[-1]),
        "best": asdict(best),
        "first_stages": [asdict(e) for e in first_stages],
        "curve": [asdict(e) for e in history],
    }

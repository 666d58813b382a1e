"""What a run leaves behind: its epochs, its result, its record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

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
        test: top1, top5 (percent) and loss on the test set after the epoch; empty in a first stage.
        seconds: training time, evaluation not included.
        images_per_second: training images per second.
        stage: ``main``, or the method whose first stage this is.
    """

    epoch: int
    learning_rate: float
    train: dict[str, float]
    test: dict[str, float]
    seconds: float
    images_per_second: float
    stage: str = "main"


@dataclass
class Result:
    """A finished run.

    Attributes:
        last: the last epoch: the result.
        best: the epoch with the highest test accuracy. It is chosen on the test set, so it is optimistic: for
            comparison with sources that report it, never the headline.
        history: all epochs of the main stage.
        student: the trained network, with the weights of the last epoch.
        record: everything that ``result.json`` holds.
    """

    last: Epoch
    best: Epoch
    history: list[Epoch]
    student: nn.Module
    record: dict[str, Any] = field(repr=False)


def build_record(
    config: RunConfig,
    task: DistillTask,
    data: ImageDataset,
    device: str,
    history: list[Epoch],
    first_stages: list[Epoch],
    best: Epoch,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Assemble ``result.json``: settings, provenance, curve, last and best epoch."""
    return {
        "format": RECORD_FORMAT,
        "protocol": config.protocol(),
        "settings": config.identity(),
        **extra,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "test": len(data.test),
        },
        "parameters": sum(p.numel() for p in task.student.parameters()),
        "objective": task.objective.describe(),
        "device": device,
        "provenance": provenance(device),
        "command": command_line(),
        "seconds": sum(e.seconds for e in [*first_stages, *history]),
        "last": asdict(history[-1]),
        "best": asdict(best),
        "first_stages": [asdict(e) for e in first_stages],
        "curve": [asdict(e) for e in history],
    }

"""What the benchmarks share: synthetic CIFAR-sized data, the machine's description, files of what was measured."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from itrd.data.datasets import ImageDataset, Split
from itrd.engine.provenance import provenance


def synthetic_cifar100(train: int, test: int = 100, size: int = 32) -> ImageDataset:
    """Random images of CIFAR-100's format: speed does not depend on what they show."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        images = rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
        return Split(images, np.arange(n) % 100)

    return ImageDataset(
        name=f"synthetic{train}",
        num_classes=100,
        class_names=tuple(map(str, range(100))),
        train=split(train),
        test=split(test),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        padding=4,
        flip=True,
    )


def machine(device: torch.device) -> str:
    """One line: hardware and versions."""
    where = provenance(str(device))
    threads = f"{where['threads']} thread{'s' * (where['threads'] != 1)}"
    return (
        f"{where['hardware']}, {threads}, torch {where['torch']}, Python {where['python']}, "
        f"itrd {where['itrd']} at {str(where['commit'])[:12]}"
    )


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and half the range in percent of it."""
    middle = statistics.median(values)
    return middle, 50 * (max(values) - min(values)) / middle


def write(path: Path | None, device: torch.device, **found: object) -> None:
    """Keep what a benchmark found as JSON, with the machine and the command line; nothing without a path."""
    if path is None:
        return
    given = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if "--out" in given:  # where the file lies says nothing about what is in it
        at = given.index("--out")
        del given[at : at + 2]
    about = {"machine": machine(device), "command": f"python benchmarks/{shlex.join(given)}"}
    path.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")

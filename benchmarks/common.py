"""What the benchmarks share: synthetic CIFAR-sized data, the machine's description, files of what was measured."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from itrd.data.datasets import ImageDataset, Split
from itrd.engine.provenance import provenance
from itrd.files import write_atomically

# Of the code that is running, whatever is committed while it runs; a + marks changes.
_COMMIT = str(provenance()["commit"])


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
    count = torch.get_num_threads()  # now: a benchmark may have changed it since the import
    threads = f"{count} thread{'s' * (count != 1)}"
    return (
        f"{where['hardware']}, {threads}, torch {where['torch']}, Python {where['python']}, "
        f"itrd {where['itrd']} at {_COMMIT[:12]}{'+' * _COMMIT.endswith('+')}"
    )


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and half the range in percent of it."""
    middle = statistics.median(values)
    return middle, 50 * (max(values) - min(values)) / middle


def add_out(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the option that :func:`write` reads."""
    parser.add_argument("--out", type=_new_file, help="write the numbers as JSON, too")


def _new_file(text: str) -> Path:
    if not Path(text).parent.is_dir():  # better told now than after the measurement
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
    return Path(text)


def write(arguments: argparse.Namespace, device: torch.device, **found: object) -> None:
    """Keep what a benchmark found as JSON, with machine, command and settings; nothing without --out."""
    if arguments.out is None:
        return
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    about = {"machine": machine(device), "command": _command(), "settings": settings}
    content = json.dumps(about | found, indent=1, default=str) + "\n"
    write_atomically(arguments.out, content.encode())


def _command() -> str:
    """The command line, but for where it writes."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and not word.startswith("--ou"):
            words.append(word)
        skip = word.startswith("--ou") and "=" not in word
    threads = os.environ.get("OMP_NUM_THREADS")
    before = f"OMP_NUM_THREADS={threads} " if threads else ""
    return before + shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])

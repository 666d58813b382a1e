"""A long run of a tiny network: memory, open files, and what is written; and what a run of wrn_40_2 writes.

python benchmarks/endurance.py --steps 10000 [--out endurance.json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_out, write
from torch import nn

from itrd import files
from itrd.data.datasets import ImageDataset, Split
from itrd.engine import checkpoint
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.networks import TrainedNetwork
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.trainer import Epoch, Trainer

PER_EPOCH = 100  # steps


def tiny_data(images: int) -> ImageDataset:
    """Random images of 10 classes."""
    draw = np.random.default_rng(0)

    def split(count: int) -> Split:
        pixels = draw.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        return Split(pixels, np.arange(count, dtype=np.int64) % 10)

    names = tuple(str(label) for label in range(10))
    return ImageDataset("tiny", 10, names, split(images), split(40), (0.5,) * 3, (0.3,) * 3, 1, True)


def tiny_net() -> nn.Module:
    """A classifier of 400 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )


def memory() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def handles() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))


def endure(steps: int, out: Path) -> dict[str, Any]:
    """Distil for so many steps with everything on that a run writes; fit what happens to memory."""
    seen: list[tuple[int, int, int]] = []

    def look(trainer: Trainer, epoch: Epoch) -> None:
        seen.append((epoch.epoch * PER_EPOCH, memory(), handles()))

    teacher = TrainedNetwork(tiny_net().eval(), "tiny", 10, "given", None, "tiny")
    settings: dict[str, Any] = {"epochs": steps // PER_EPOCH, "batch_size": 4, "learning_rate": 0.01}
    config = DistillConfig(
        **settings,
        teacher="tiny",
        student="tiny",
        method="kd",
        data="tiny",
        device="cpu",
        out=str(out),
        progress=False,
    )
    data = tiny_data(4 * PER_EPOCH)
    with prepare_distill(config, [look], teacher=teacher, student=tiny_net(), data=data) as trainer:
        trainer.fit()
    at, resident, opened = (np.array(column, dtype=float) for column in zip(*seen, strict=True))
    settled = len(at) // 5  # the first fifth is for caches to fill
    slope = PER_EPOCH * np.polyfit(at[settled:], resident[settled:], 1)[0]
    events = sum(path.stat().st_size for path in out.glob("events*"))
    return {
        "steps": steps,
        "epochs": len(seen),
        "memory_mb_at_a_fifth": round(resident[settled] / 1e6, 2),
        "memory_mb_at_the_end": round(resident[-1] / 1e6, 2),
        "memory_bytes_per_epoch": round(float(slope)),
        "open_files": [int(opened.min()), int(opened.max())],
        "metrics_bytes_per_epoch": round((out / "metrics.jsonl").stat().st_size / len(seen)),
        "event_bytes_per_epoch": round(events / len(seen)),
        "folder_bytes": sum(path.stat().st_size for path in out.iterdir()),
    }


def disk(model: str, out: Path) -> dict[str, Any]:
    """What a run of a benchmark network writes in an epoch and keeps."""
    written = [0]
    original = files.write_atomically

    def counting(path: Path, content: bytes, *more: Any, **named: Any) -> None:
        written[0] += len(content)
        original(path, content, *more, **named)

    after: list[int] = []

    def epoch(trainer: Trainer, epoch: Epoch) -> None:
        after.append(written[0])

    config = TrainConfig(
        model=model,
        data="digits",
        train_subset=20,
        test_subset=10,
        epochs=4,
        device="cpu",
        out=str(out),
        progress=False,
    )
    checkpoint.write_atomically = counting  # type: ignore[assignment]
    try:
        with prepare_train(config, [epoch]) as trainer:
            trainer.fit()
    finally:
        checkpoint.write_atomically = original  # type: ignore[assignment]
    state = (out / "checkpoint.pt").stat().st_size
    weights = (out / "last.safetensors").stat().st_size
    kept = sum(path.stat().st_size for path in out.iterdir())
    return {
        "model": model,
        "checkpoint_mb": round(state / 1e6, 2),
        "weights_mb": round(weights / 1e6, 2),
        "kept_mb": round(kept / 1e6, 1),
        "written_in_240_epochs_gb": round(
            240 * (state + weights) / 1e9, 2
        ),  # if every epoch is the best so far
        "measured_mb_per_epoch": round((after[-1] - after[0]) / (len(after) - 1) / 1e6, 2),
    }


def main() -> None:
    """Print both as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = {
            "long": endure(options.steps, Path(name) / "long"),
            "disk": disk("wrn_40_2", Path(name) / "wide"),
        }
    print(json.dumps(found, indent=1))
    write(options, torch.device("cpu"), **found)


if __name__ == "__main__":
    main()

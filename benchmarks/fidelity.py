"""The fast path against plain eager fp32: is the same thing learned?

    python benchmarks/fidelity.py                       digits: minutes on two CPU cores
    python benchmarks/fidelity.py --data cifar100 --teacher runs/teacher --epochs 30 --seeds 5

Three comparisons. Augmentation: every view equally likely (chi-square), and every view equal, pixel for pixel and bit
for bit, to pad, crop, flip, scale, normalise done literally on one image at a time. Losses: 200 steps of the same run
on both paths, from the same weights on the same batches. Accuracy: a short schedule over several seeds on both paths,
and the 95% interval of the difference, paired by seed.

Plain is fp32, contiguous memory, live teacher. Fast is bf16 where the hardware multiplies it, channels-last, and the
teacher's table.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_out, machine, write
from rich.console import Console
from rich.table import Table
from scipy.stats import chisquare

import itrd
from itrd.data.datasets import ImageDataset
from itrd.data.device import DeviceImages
from itrd.data.plan import plan_epoch
from itrd.engine.device import autocast, fast_precision, resolve_device
from itrd.engine.networks import load_network, starting_network
from itrd.engine.task import DistillTask
from itrd.methods import Batch
from itrd.stats import paired_difference, summarize

STEPS, SHOWN_STEPS = 200, (1, 2, 5, 10, 20, 50, 100, 200)


def literal_view(image: np.ndarray, view: int, data: ImageDataset) -> np.ndarray:
    """One view of one uint8 image (C, H, W), step by step: float32 (C, H, W)."""
    side, flips = 2 * data.padding + 1, 2 if data.flip else 1
    crop, flip = divmod(view, flips)
    top, left = divmod(crop, side)
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * data.padding, width + 2 * data.padding), dtype=np.uint8)
    padded[:, data.padding : data.padding + height, data.padding : data.padding + width] = image
    seen = padded[:, top : top + height, left : left + width]
    seen = seen[:, :, ::-1] if flip else seen
    scaled = seen.astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (data.mean, data.std))
    return (scaled - mean) / std


def augmentation(data: ImageDataset, device: torch.device, epochs: int = 40) -> tuple[int, int, float]:
    """Views compared, entries that differ, p-value of the hypothesis that all views are equally likely."""
    images = DeviceImages(
        data.train, data.mean, data.std, padding=data.padding, flip=data.flip, device=device
    )
    views = torch.arange(images.num_views, device=device)
    different = 0
    for index in range(3):
        ours = images.batch(torch.full_like(views, index), views).cpu().numpy()
        expected = np.stack([literal_view(data.train.images[index], int(v), data) for v in views])
        different += int((ours != expected).sum())
    plans = [
        plan_epoch(len(images), images.num_views, 64, seed=0, epoch=e).views for e in range(1, epochs + 1)
    ]
    counts = torch.bincount(torch.cat(plans), minlength=images.num_views).numpy()
    return 3 * images.num_views, different, float(chisquare(counts).pvalue)


def student(arguments: argparse.Namespace, teacher: str, seed: int, fast: bool, tables: str) -> Any:
    """Train one student on one of the two paths."""
    precision = fast_precision(resolve_device(arguments.device))
    path = (
        {"precision": precision, "channels_last": True, "teacher_table": tables}
        if fast
        else {"precision": "fp32", "channels_last": False}
    )
    return itrd.distill(
        teacher,
        arguments.student,
        arguments.data,
        arguments.method,
        seed=seed,
        epochs=arguments.epochs,
        device=arguments.device,
        data_root=arguments.data_root,
        **path,
    )


def step_losses(arguments: argparse.Namespace, teacher: str, data: ImageDataset, fast: bool) -> list[float]:
    """Losses of the first steps of a run; both paths start from the same weights and see the same batches."""
    device = resolve_device(arguments.device)
    layout = torch.channels_last if fast else torch.contiguous_format
    taught_by = load_network(teacher).net.to(device, memory_format=layout)
    net = starting_network(arguments.student, data.num_classes, 0).net.to(device, memory_format=layout)
    task = DistillTask(net, taught_by, itrd.create_objective(arguments.method))
    images = DeviceImages(
        data.train,
        data.mean,
        data.std,
        padding=data.padding,
        flip=data.flip,
        device=device,
        channels_last=fast,
    )
    torch.manual_seed(0)
    task.setup(images.plain(torch.arange(4, device=device)), data.num_classes, images.labels)
    task.train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses: list[torch.Tensor] = []
    for epoch in itertools.count(1):
        plan = plan_epoch(len(images), images.num_views, 64, seed=0, epoch=epoch).to(device)
        for indices, views in plan:
            with autocast(device, fast_precision(device) if fast else "fp32"):
                loss = task(images.batch(indices, views), Batch(images.labels[indices], indices)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == STEPS:
                return torch.stack(losses).tolist()
    raise AssertionError


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data_root", default="data")
    parser.add_argument(
        "--teacher", help="run folder or checkpoint (default: a resnet20 trained here on digits)"
    )
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--method", default="itrd")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    add_out(parser)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    data = itrd.load_dataset(arguments.data, arguments.data_root)
    console = Console(width=110, highlight=False)
    console.print(machine(device))

    views, different, p = augmentation(data, device)
    console.print(
        f"augmentation: {views} views of 3 images, {different} pixels differ; uniform views: p = {p:.2f}"
    )

    with tempfile.TemporaryDirectory() as folder:
        teacher = arguments.teacher
        if teacher is None:
            teacher = str(Path(folder) / "teacher")
            itrd.train("resnet20", arguments.data, epochs=12, out=teacher, device=arguments.device)
        tables = str(Path(folder) / "tables")
        rows: dict[bool, list[Any]] = {False: [], True: []}
        for seed in range(arguments.seeds):
            for fast in (False, True):
                rows[fast].append(student(arguments, teacher, seed, fast, tables))

        steps = {fast: step_losses(arguments, teacher, data, fast) for fast in (False, True)}

    table = Table(title="training loss at step ..., same weights and batches, seed 0")
    for column in ("path", *map(str, SHOWN_STEPS), f"mean of {STEPS}"):
        table.add_column(column, justify="right")
    for fast, name in ((False, "plain"), (True, "fast")):
        cells = [f"{steps[fast][step - 1]:.4f}" for step in SHOWN_STEPS]
        table.add_row(name, *cells, f"{np.mean(steps[fast]):.4f}")
    console.print(table)
    scores = {fast: [r.last.test["top1"] for r in runs] for fast, runs in rows.items()}
    table = Table(
        title=f"{arguments.method}, {arguments.student} on {data.name}, {arguments.epochs} epochs, last epoch"
    )
    for column in ("path", "n", "top-1 mean", "std", "images/s (median epoch)"):
        table.add_column(column, justify="right")
    for fast, name in ((False, "plain"), (True, "fast")):
        s = summarize(scores[fast])
        rate = float(np.median([e.images_per_second for r in rows[fast] for e in r.history]))
        table.add_row(name, str(s.n), f"{s.mean:.2f}%", f"{s.std:.2f}", f"{rate:,.0f}")
    console.print(table)
    write(
        arguments,
        device,
        precision=fast_precision(device),
        views={"compared": views, "pixels_different": different, "p_uniform": p},
        losses={"plain": steps[False], "fast": steps[True]},
        top1={"plain": scores[False], "fast": scores[True]},
    )
    gap = paired_difference(scores[True], scores[False])
    console.print(
        f"fast - plain: {gap.mean:+.2f} points, 95% interval {gap.low:+.2f} to {gap.high:+.2f}, n = {gap.n}"
    )


if __name__ == "__main__":
    main()

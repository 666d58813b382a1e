"""How time and memory of training grow: with batch size, number of students, image size and dataset size.

    python benchmarks/scaling.py [--pair resnet56:resnet20] [--out scaling.json] [--plot scaling.png]

One quantity changes at a time; the others stay at batch 64, one student, 32 x 32 pixels and a small dataset. Time is
the median over epochs of the milliseconds per step (for the dataset: of preparing a run and planning an epoch; for
students: of one step of each). The benchmark's networks take 32 x 32 pixels only; the image size is varied with plain
convolutional networks of this file. Memory is the peak of tensors allocated in one step (for students: what they keep
between steps; for the dataset: its images on the device). To each series a line, cost = a + b x, is fitted by least
squares; R2 says how much of the variation it explains, and the exponent is the slope of log cost against log x between
the ends: 1 is proportional, 0 is constant.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import add_out, machine, median_and_spread, synthetic_cifar100, write
from memory import peak_on_cpu
from rich.console import Console
from rich.table import Table
from torch import nn

from itrd.data.datasets import ImageDataset
from itrd.data.plan import plan_epoch
from itrd.engine.config import DistillConfig
from itrd.engine.device import resolve_device
from itrd.engine.networks import TrainedNetwork
from itrd.engine.optimizer import make_optimizer
from itrd.engine.place import place_images
from itrd.engine.run import prepare_distill
from itrd.engine.step import Stepper
from itrd.engine.together import fit_together
from itrd.engine.trainer import Trainer
from itrd.models import create_model

BATCHES, STUDENTS, SIZES = (16, 32, 64, 128, 256), (1, 2, 4, 8), (32, 48, 64, 96)
IMAGES = (2_000, 5_000, 10_000, 20_000, 50_000)


@dataclass(frozen=True)
class Point:
    """One measurement: the quantity, milliseconds (median and half range in percent), MiB."""

    x: int
    milliseconds: float
    spread: float
    mebibytes: float


@dataclass(frozen=True)
class Series:
    """Measurements along one quantity."""

    name: str
    unit: str
    points: list[Point]

    def line(self, values: list[float]) -> tuple[float, float, float, float]:
        """Offset a, slope b and R2 of the line through values, and the exponent between the ends."""
        x = np.array([point.x for point in self.points], dtype=float)
        y = np.array(values)
        slope, offset = np.polyfit(x, y, 1)
        unexplained = ((y - offset - slope * x) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-30)
        exponent = np.log(y[-1] / y[0]) / np.log(x[-1] / x[0])
        offset = offset if abs(offset) > 1e-9 * y.max() else 0.0  # a line through 0 misses it by rounding
        return float(offset), float(slope), float(1 - unexplained), float(exponent)


class Plain(nn.Sequential):
    """Three stages of convolution, batch norm and ReLU, each at half the resolution of the one before; any size."""

    def __init__(self, width: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 100))


class Bench:
    """Makes and times runs of one pair."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.teacher, _, self.student = arguments.pair.partition(":")
        self.arguments = arguments
        self.device = resolve_device(arguments.device)

    def trainer(
        self,
        stack: ExitStack,
        data: ImageDataset,
        batch_size: int = 64,
        *,
        teacher: nn.Module | None = None,
        student: nn.Module | None = None,
        seed: int = 0,
    ) -> Trainer:
        """Prepare a run."""
        torch.manual_seed(0)
        config = DistillConfig(
            teacher=self.teacher,
            student=self.student,
            method="itrd",
            data=data.name,
            epochs=self.arguments.epochs + 1,
            batch_size=batch_size,
            seed=seed,
            precision=self.arguments.precision,
            device=self.arguments.device,
            out="",
            progress=False,
            tensorboard=False,
        )
        net = teacher or create_model(self.teacher, 100)
        given = TrainedNetwork(net.eval(), self.teacher, 100, "given", None, data.name)
        return stack.enter_context(prepare_distill(config, teacher=given, student=student, data=data))

    def step(self, batch_size: int, size: int | None = None) -> tuple[float, float, float]:
        """Milliseconds a step, their spread, and the peak MiB of a step; plain networks if a size is given."""
        data = synthetic_cifar100(batch_size * self.arguments.steps, size=size or 32)
        nets = {"teacher": Plain(64), "student": Plain(16)} if size else {}
        with ExitStack() as stack:
            trainer = self.trainer(stack, data, batch_size, **nets)
            peak = self.peak(trainer, batch_size)
            times = [1000 * e.seconds / self.arguments.steps for e in trainer.fit().history[1:]]
        return (*median_and_spread(times), peak)

    def peak(self, trainer: Trainer, batch_size: int) -> float:
        """Highest memory of tensors during a step, in MiB."""
        stage = trainer._stages[-1]
        optimizer = make_optimizer(stage.begin(), trainer.config, self.device)
        images, position = trainer.train_images, trainer.position
        stepper = Stepper(stage, optimizer, images, trainer._guard, position.meter, trainer.config.precision)
        plan = plan_epoch(len(images), images.num_views, batch_size, seed=0, epoch=1)
        drawn = next(images.draw(plan, 0))
        stepper.take(drawn, None)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            stepper.take(drawn, None)
            peak = torch.cuda.max_memory_allocated(self.device) - before
            torch.cuda.synchronize(self.device)  # the run goes on in a stream of its own
        else:
            peak = peak_on_cpu(lambda: stepper.take(drawn, None))
        position.meter.reset()
        return peak / 2**20

    def together(self, students: int) -> tuple[float, float, float]:
        """Milliseconds for a step of each of several students, their spread, and MiB of what they hold."""
        data = synthetic_cifar100(64 * self.arguments.steps)
        times = []
        for _ in range(self.arguments.epochs):
            with ExitStack() as stack:
                net = create_model(self.teacher, 100)
                trainers = [self.trainer(stack, data, teacher=net, seed=seed) for seed in range(students)]
                fit_together(trainers)
                # Every run's epochs last as long as those of all; the first one warms up.
                seconds = max(sum(e.seconds for e in t.history[1:]) for t in trainers)
                times.append(1000 * seconds / (self.arguments.steps * self.arguments.epochs))
                held = sum(held_bytes(trainer) for trainer in trainers)
        return (*median_and_spread(times), held / 2**20)

    def dataset(self, count: int) -> tuple[float, float, float]:
        """Milliseconds to bring a dataset to the device and plan an epoch, their spread, and its MiB there."""
        times = []
        for _ in range(self.arguments.epochs):
            data = synthetic_cifar100(count)
            config = DistillConfig(teacher="", student=self.student)
            started = time.perf_counter()
            images, _ = place_images(data, config, self.device)
            plan_epoch(len(images), images.num_views, 64, seed=0, epoch=1).to(self.device)
            times.append(1000 * (time.perf_counter() - started))
            crops = images._crops.untyped_storage().nbytes()
        return (*median_and_spread(times), crops / 2**20)


def held_bytes(trainer: Trainer) -> int:
    """What a student keeps between steps: weights, statistics, the objective's modules, momentum."""
    state = sum(t.numel() * t.element_size() for t in trainer.task.state_dict().values())
    return state + sum(4 * p.numel() for p in trainer.task.parameters() if p.requires_grad)


def main() -> None:
    """Measure, fit, print one table, and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="wrn_40_2:wrn_16_2", help="TEACHER:STUDENT")
    parser.add_argument("--steps", type=int, help="steps per epoch (default: 6; on a GPU 200)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs measured, after one that warms up")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    add_out(parser)
    parser.add_argument("--plot", type=Path, help="draw them into this file")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (200 if resolve_device(arguments.device).type == "cuda" else 6)
    bench = Bench(arguments)
    series = [
        Series("batch size", "images", [Point(x, *bench.step(x)) for x in BATCHES]),
        Series("students", "runs", [Point(x, *bench.together(x)) for x in STUDENTS]),
        Series("pixels of an image", "pixels", [Point(x * x, *bench.step(64, x)) for x in SIZES]),
        Series("images of the dataset", "images", [Point(x, *bench.dataset(x)) for x in IMAGES]),
    ]
    show(series, arguments, bench.device)
    write(arguments, bench.device, series=[asdict(each) for each in series])
    if arguments.plot:
        plot(series, arguments.plot, machine(bench.device))


def show(series: list[Series], arguments: argparse.Namespace, device: torch.device) -> None:
    """Print the table."""
    table = Table(
        title=f"{arguments.pair}, ITRD, {arguments.precision}: median of n = {arguments.epochs} (± half range)",
        caption=machine(device),
    )
    for column in ("varied", "x: ms, MiB", "ms = a + b x", "MiB = a + b x"):
        table.add_column(column)
    for each in series:
        rows = [f"{p.x:,}: {p.milliseconds:.1f} ±{p.spread:.0f}%, {p.mebibytes:.1f}" for p in each.points]
        fits = []
        for values in ([p.milliseconds for p in each.points], [p.mebibytes for p in each.points]):
            offset, slope, r2, exponent = each.line(values)
            fits.append(f"{offset:.3g} + {slope:.3g} x\nR2 {r2:.3f}\nexponent {exponent:.2f}")
        table.add_row(each.name, "\n".join(rows), *fits)
    Console(width=120).print(table)


def plot(series: list[Series], file: Path, caption: str) -> None:
    """Draw time and memory of every series with the fitted lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, len(series))
    for column, each in enumerate(series):
        x = np.array([p.x for p in each.points], dtype=float)
        for row, (name, values) in enumerate(
            {
                "milliseconds": [p.milliseconds for p in each.points],
                "MiB": [p.mebibytes for p in each.points],
            }.items()
        ):
            axis = axes[row, column]
            offset, slope, r2, _ = each.line(values)
            axis.plot(x, offset + slope * x, color="0.6", label=f"{offset:.3g} + {slope:.3g} x (R² {r2:.3f})")
            errors = [p.milliseconds * p.spread / 100 for p in each.points] if row == 0 else None
            axis.errorbar(x, values, yerr=errors, fmt="o", color="tab:blue", capsize=3, label="measured")
            axis.set(xlabel=each.name, ylabel=name, ylim=(0, None), xlim=(0, None))
            axis.locator_params(axis="x", nbins=4)
            axis.legend(fontsize="small")
    figure.suptitle(caption, fontsize="small")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()

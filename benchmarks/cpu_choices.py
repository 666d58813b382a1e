"""What the choices that docs/performance.md explains for CPUs are worth, each beside its alternative, in one run.

    python benchmarks/cpu_choices.py [--pair wrn_40_2:wrn_16_2] [--epochs 3] [--steps 12] [--out choices.json]

First a step with ITRD in bf16 at batch 64, with a live teacher and with its filled table: as it is, with glibc giving
blocks back to the kernel, and compiled; images/s (median over epochs, half range), page faults a step, and the
milliseconds a step that oneDNN says it spent in convolutions (set-up and evaluation are a part of these). Then the
gradient of the input of a depthwise 3x3 convolution in bf16, with stride 2 as in MobileNetV2 and the ShuffleNets, and
without a stride.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import torch
from common import add_out, machine, median_and_spread, synthetic_cifar100, write
from rich.console import Console
from rich.table import Table

from itrd.engine.config import DistillConfig
from itrd.engine.networks import TrainedNetwork
from itrd.engine.record import Epoch
from itrd.engine.run import prepare_distill
from itrd.engine.trainer import Trainer
from itrd.models import create_model


class Choice(NamedTuple):
    """A row: environment, settings, and the row that it is an alternative to."""

    environment: dict[str, str]
    settings: dict[str, bool]
    against: str | None = None


LIVE, TABLE = "live teacher", "teacher's table"
CHOICES = {
    LIVE: Choice({}, {}),
    "live teacher, freed memory given back": Choice({"MALLOC_MMAP_THRESHOLD_": "131072"}, {}, LIVE),
    "live teacher, --compile": Choice({}, {"compile": True}, LIVE),
    TABLE: Choice({}, {"table": True}, LIVE),
    "teacher's table, --compile": Choice({}, {"table": True, "compile": True}, TABLE),
    "live teacher, timed by oneDNN": Choice({"ONEDNN_VERBOSE": "profile_exec"}, {}, LIVE),
}
BATCH, REPEATS = 64, 9
# Channels and side of the depthwise convolutions with stride 2: ShuffleV1, ShuffleV2, MobileNetV2.
DEPTHWISE = [(54, 32), (60, 16), (120, 8), (58, 32), (116, 16), (232, 8), (72, 16), (288, 4)]


def child(arguments: argparse.Namespace, compile: bool = False, table: bool = False) -> None:
    """Train, and print images/s of each epoch and page faults a step as JSON."""
    teacher, _, student = arguments.pair.partition(":")
    data = synthetic_cifar100(arguments.steps * BATCH)
    torch.manual_seed(0)
    given = TrainedNetwork(create_model(teacher, 100).eval(), teacher, 100, "given", None, data.name)
    faults: list[int] = []

    def count(trainer: Trainer, epoch: Epoch) -> None:
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 + table):  # the first run fills the table
            faults.clear()
            config = DistillConfig(
                teacher=teacher,
                student=student,
                method="itrd",
                data=data.name,
                epochs=arguments.epochs + 1,
                precision="bf16",
                compile=compile,
                teacher_table=folder if table else None,
                device="cpu",
                out="",
                progress=False,
                tensorboard=False,
            )
            with prepare_distill(config, [count], teacher=given, data=data) as trainer:
                rates = [epoch.images_per_second for epoch in trainer.fit().history[1:]]
    steps = arguments.steps * arguments.epochs
    print(json.dumps({"rates": rates, "faults": (faults[-1] - faults[0]) / steps}))


def measured(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """What one choice gives: images/s of the epochs, page faults and milliseconds of convolutions a step."""
    environment, settings, _ = CHOICES[name]
    command = [sys.executable, __file__, "--child", json.dumps(settings), "--pair", arguments.pair]
    command += ["--epochs", str(arguments.epochs), "--steps", str(arguments.steps)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    *verbose, last = done.stdout.splitlines()
    found = json.loads(last)
    spent = [float(line.split(",")[-1]) for line in verbose if ",exec,cpu,convolution," in line]
    steps = arguments.steps * (arguments.epochs + 1)
    return found | {"convolutions_ms": sum(spent) / steps if spent else None}


def rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """What the choices give, as tables show it: see :data:`COLUMNS`."""
    shown = []
    for name, of in found.items():
        rate, spread = median_and_spread(of["rates"])
        against = CHOICES[name].against
        times = (
            "" if against is None else f"{rate / statistics.median(found[against]['rates']):.2f} × {against}"
        )
        convolutions = "" if of["convolutions_ms"] is None else f"{of['convolutions_ms']:.0f}"
        cells = [f"{rate:,.0f} ±{spread:.0f}%", times, f"{1000 * BATCH / rate:.0f}", f"{of['faults']:,.0f}"]
        shown.append([name, *cells, convolutions])
    return shown


COLUMNS = ["images/s", "beside", "ms a step", "page faults a step", "ms a step in oneDNN's convolutions"]


def gradient(channels: int, side: int, stride: int) -> float:
    """Milliseconds of the gradient of a depthwise convolution's input, median of :data:`REPEATS`."""
    form = {"memory_format": torch.channels_last}
    x = torch.randn(BATCH, channels, side, side).bfloat16().to(**form)
    out = torch.randn(BATCH, channels, side // stride, side // stride).bfloat16().to(**form)
    weight = torch.randn(channels, 1, 3, 3).bfloat16()
    geometry = ([stride] * 2, [1, 1], [1, 1], False, [0, 0], channels)
    times = []
    for _ in range(3 + REPEATS):
        started = time.perf_counter()
        torch.ops.aten.convolution_backward(out, x, weight, None, *geometry, [True, False, False])
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="wrn_40_2:wrn_16_2", help="TEACHER:STUDENT")
    parser.add_argument("--epochs", type=int, default=3, help="epochs measured, after one that warms up")
    parser.add_argument("--steps", type=int, default=12, help="steps per epoch")
    add_out(parser)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    task = vars(arguments).pop("child")
    if task is not None:
        child(arguments, **task)
        return
    console = Console(width=120)
    title = f"{arguments.pair}, ITRD, bf16, n = {arguments.epochs} epochs"
    table = Table("", *COLUMNS, title=title)
    choices = {name: measured(arguments, name) for name in CHOICES}
    for cells in rows(choices):
        table.add_row(*cells)
    console.print(table)
    table = Table(
        "channels x side", "stride 2, ms", "stride 1, ms", "times", caption=machine(torch.device("cpu"))
    )
    depthwise = {}
    for channels, side in DEPTHWISE:
        slow, fast = depthwise[f"{channels} x {side}"] = [
            gradient(channels, side, stride) for stride in (2, 1)
        ]
        table.add_row(f"{channels} x {side}", f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.0f}")
    console.print(table)
    write(arguments, torch.device("cpu"), choices=choices, depthwise_ms=depthwise)


if __name__ == "__main__":
    main()

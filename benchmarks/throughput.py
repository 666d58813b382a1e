"""Images per second of a training step, beside a conventional loop in the same run.

    python benchmarks/throughput.py                          every published pair, with ITRD
    python benchmarks/throughput.py --pairs wrn_40_2:wrn_16_2 --epochs 5

Columns: the conventional loop (benchmarks/conventional.py); this package with a live teacher in fp32 and in bf16;
with the teacher's table while it is filled (every view new: the worst epoch) and when it is filled. The last column
is the whole of a first 240-epoch run: an image is seen in 240 random views of 162, of which 162 (1 - (161/162)^240) =
125 are new on average, so 52% of its lookups are computed first. Later runs on the same teacher, of any method that
reads logits or embedding and any seed, find almost everything. With --compile also a column with the filled table and
networks and loss compiled, which takes a minute or two a pair to compile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from common import add_out, machine, median_and_spread, synthetic_cifar100, write
from conventional import train_epochs
from rich.console import Console
from rich.table import Table

from itrd.data.datasets import ImageDataset
from itrd.engine.config import DistillConfig
from itrd.engine.device import resolve_device
from itrd.engine.networks import TrainedNetwork
from itrd.engine.run import prepare_distill
from itrd.engine.task import DistillTask
from itrd.methods import create_objective
from itrd.models import create_model
from itrd.recipes import PAIRS, recipe

EPOCHS_OF_PROTOCOL, VIEWS = 240, 162
NEW_VIEWS = VIEWS * (1 - (1 - 1 / VIEWS) ** EPOCHS_OF_PROTOCOL)


def ours(
    pair: tuple[str, str], data: ImageDataset, arguments: argparse.Namespace, **settings: object
) -> list[float]:
    """Images per second of each epoch but the first, which warms up."""
    teacher, student = pair
    torch.manual_seed(0)
    net = create_model(teacher, 100).eval()
    config = DistillConfig(
        teacher=teacher,
        student=student,
        method=recipe("itrd", teacher, student).loss,
        data=data.name,
        epochs=arguments.epochs + 1,
        batch_size=arguments.batch_size,
        device=arguments.device,
        out="",
        progress=False,
        tensorboard=False,
        **settings,
    )
    given = TrainedNetwork(net, teacher, 100, "given", None, data.name)
    with prepare_distill(config, teacher=given, data=data) as trainer:
        return [epoch.images_per_second for epoch in trainer.fit().history[1:]]


def conventional(pair: tuple[str, str], data: ImageDataset, arguments: argparse.Namespace) -> list[float]:
    """The yardstick on the same pair, loss and data."""
    device = resolve_device(arguments.device)
    teacher, student = (create_model(name, 100) for name in pair)
    task = DistillTask(student, teacher, create_objective(recipe("itrd", *pair).loss))
    task.setup(torch.zeros(2, 3, 32, 32), 100, torch.from_numpy(data.train.labels))
    task.to(device)
    teacher.to(device)
    rates = train_epochs(
        student,
        teacher,
        task.objective,
        data,
        epochs=arguments.epochs + 1,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=device,
    )
    return rates[1:]


def alone(work: Callable[..., list[float]], *given: object, **settings: object) -> list[float]:
    """Call in a process of its own: what one column sets in its process must not reach the next."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *given, **settings).result()


def measure(pair: tuple[str, str], arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median images/s and spread of every column for one pair."""
    data = synthetic_cifar100(arguments.steps * arguments.batch_size)
    case = (pair, data, arguments)
    rates = {"conventional": alone(conventional, *case)}
    rates["live fp32"] = alone(ours, *case)
    rates["live bf16"] = alone(ours, *case, precision="bf16")
    with tempfile.TemporaryDirectory() as folder:
        table = {"precision": "bf16", "teacher_table": folder}
        rates["table, filling"] = alone(ours, *case, **table)
        rates["table"] = alone(ours, *case, **table)  # the same seed: every row is there
        if arguments.compile:
            rates["table, compiled"] = alone(ours, *case, **table, compile=True)
    found = {name: median_and_spread(values) for name, values in rates.items()}
    per_lookup = 1 / found["table"][0]
    per_fill = 1 / found["table, filling"][0] - per_lookup
    first_run = 1 / (per_lookup + max(per_fill, 0) * NEW_VIEWS / EPOCHS_OF_PROTOCOL)
    found["first 240-epoch run"] = (first_run, found["table"][1])
    return found


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=[f"{t}:{s}" for t, s in PAIRS], help="TEACHER:STUDENT")
    parser.add_argument("--steps", type=int, help="steps per epoch (default: 12; on a GPU 200)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs measured, after one that warms up")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument(
        "--workers", type=int, default=torch.get_num_threads(), help="of the conventional loop"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="also measure what torch.compile adds")
    add_out(parser)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    arguments.steps = arguments.steps or (200 if device.type == "cuda" else 12)
    results: dict[str, dict[str, tuple[float, float]]] = {}
    for text in arguments.pairs:
        teacher, _, student = text.partition(":")
        results[text] = measure((teacher, student), arguments)
        write(arguments, device, images_per_second=results)  # after every pair
    table = Table(
        title=f"ITRD, batch {arguments.batch_size}, images/s: median of {arguments.epochs} epochs of "
        f"{arguments.steps} steps (± half range), × against the conventional loop",
        caption=machine(device),
    )
    table.add_column("pair")
    for name in next(iter(results.values())):
        table.add_column(name, justify="right")
    for text, found in results.items():
        base = found["conventional"][0]
        cells = [f"{rate:,.0f} ±{spread:.0f}%\n× {rate / base:.1f}" for rate, spread in found.values()]
        table.add_row(text.replace(":", "\n-> "), *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()

"""How fast a step could be: the arithmetic and the memory traffic of every published pair on this machine.

    python benchmarks/floors.py [--precision bf16] [--batch_size 64] [--measured throughput.json]

Arithmetic: floating-point operations of the student's forward and backward pass and of the teacher's forward pass,
counted by torch, over the rate of a large matrix product measured here. Bytes: every convolution, batch norm, ReLU and
linear layer reads its input and writes its output once (forward), and reads and writes as much again twice (backward),
over the rate of a large copy measured here. No kernel can beat the larger of the two for its network; fusing layers
lowers the second. Weights and optimiser state are counted once per step.

With the numbers that `throughput.py --out FILE` wrote, the table says what a step took on the same machine, with a live
teacher and with the teacher's table, and how many times its floor that is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from common import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from itrd.engine.device import resolve_device
from itrd.models import create_model
from itrd.recipes import PAIRS

LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear)


def best_time(work: object, device: torch.device, repeats: int = 7) -> float:
    """Shortest of several timings, in seconds: a floor is about the machine undisturbed."""
    assert callable(work)
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / best_time(lambda: a @ b, device)


def peak_bytes(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that fits no cache."""
    source = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_time(lambda: target.copy_(source), device)


def forward_flops(net: nn.Module, images: Tensor) -> int:
    """Operations of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    return counter.get_total_flops()


def forward_bytes(net: nn.Module, images: Tensor, itemsize: int) -> int:
    """Bytes that the layers of one forward pass read and write."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += (inputs[0].numel() + output.numel()) * itemsize

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, LAYERS)]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return total


def measured_steps(file: Path | None, batch_size: int, precision: str) -> dict[str, tuple[float, float]]:
    """Pair -> milliseconds of a step with a live teacher and with its table, from throughput.py's file."""
    if file is None:
        return {}
    rates = json.loads(file.read_text())["images_per_second"]
    live = f"live {precision}"
    return {
        pair: (1000 * batch_size / found[live][0], 1000 * batch_size / found["table"][0])
        for pair, found in rates.items()
    }


def main() -> None:
    """Compute and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--measured", type=Path, help="what throughput.py --out wrote")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    flops, rate = peak_flops(device, dtype), peak_bytes(device)
    measured = measured_steps(arguments.measured, arguments.batch_size, arguments.precision)
    images = torch.zeros(1, 3, 32, 32)
    table = Table(
        title=f"floors of a step, ms, batch {arguments.batch_size}, {arguments.precision}: "
        f"{flops / 1e9:,.0f} GFLOP/s (matrix product), {rate / 1e9:.1f} GB/s (copy)",
        caption=machine(device),
    )
    columns = ["pair", "student arithmetic", "student bytes", "teacher arithmetic", "teacher bytes"]
    for column in columns + ["live: measured", "× floor", "table: measured", "× floor"] * bool(measured):
        table.add_column(column, justify="right")
    for pair in PAIRS:
        floors: list[float] = []
        for name, passes in ((pair.student, 3), (pair.teacher, 1)):
            net = create_model(name, 100).eval()
            work = passes * forward_flops(net, images) * arguments.batch_size
            moved = passes * forward_bytes(net, images, dtype.itemsize) * arguments.batch_size
            if passes == 3:
                moved += 5 * 4 * sum(p.numel() for p in net.parameters())  # weight, gradient, momentum
            floors += [1000 * work / flops, 1000 * moved / rate]
        cells = [f"{pair.teacher}\n-> {pair.student}", *(f"{floor:.1f}" for floor in floors)]
        if measured and f"{pair.teacher}:{pair.student}" in measured:
            live, table_step = measured[f"{pair.teacher}:{pair.student}"]
            for time_taken, floor in (
                (live, max(floors[:2]) + max(floors[2:])),
                (table_step, max(floors[:2])),
            ):
                cells += [f"{time_taken:.1f}", f"{time_taken / floor:.1f}"]
        table.add_row(*cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

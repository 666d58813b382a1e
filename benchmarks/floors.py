"""How fast a step could be: the arithmetic and the memory traffic of every published pair on this machine.

    python benchmarks/floors.py [--precision bf16] [--batch_size 64] [--measured throughput.json]

Arithmetic: floating-point operations of the student's forward and backward pass and of the teacher's forward pass,
counted by torch, over the rate of a large matrix product or convolution measured here, whichever is higher. Bytes:
every convolution, batch norm, ReLU and linear layer reads its input and writes its output once (forward), and reads and
writes as much again twice (backward), over the rate of a large copy measured here. No kernel can beat the larger of the
two for its network; fusing layers lowers the second. Weights and optimiser state are counted once per step.

With the numbers that `throughput.py --out FILE` wrote, the table says what a step took on the same machine, with a live
teacher and with the teacher's table, and how many times its floor that is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from common import add_out, machine, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from itrd.engine.device import resolve_device, set_float32
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
    """Operations per second of a square matrix product or of a 3x3 convolution, whichever does more."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = 2 * n**3 / best_time(lambda: a @ b, device)
    batch, channels, size = 64 * (16 if device.type == "cuda" else 1), 256, 16
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
    x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
    x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    with torch.no_grad():
        convolution = 2 * batch * size**2 * 9 * channels**2 / best_time(lambda: layer(x), device)
    return max(product, convolution)


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


def pair_floors(
    pair: tuple[str, str], batch_size: int, itemsize: int, flops: float, rate: float
) -> dict[str, float]:
    """Milliseconds of arithmetic and of memory traffic of a pair's student and teacher."""
    images, found = torch.zeros(1, 3, 32, 32), {}
    for role, name, passes in (("student", pair[1], 3), ("teacher", pair[0], 1)):
        net = create_model(name, 100).eval()
        moved = passes * forward_bytes(net, images, itemsize) * batch_size
        if role == "student":
            moved += 5 * 4 * sum(p.numel() for p in net.parameters())  # weight, gradient, momentum
        found[f"{role} arithmetic"] = 1000 * passes * forward_flops(net, images) * batch_size / flops
        found[f"{role} bytes"] = 1000 * moved / rate
    return found


def floor(found: dict[str, float], roles: tuple[str, ...]) -> float:
    """The larger of arithmetic and memory traffic, summed over networks."""
    return sum(max(found[f"{role} arithmetic"], found[f"{role} bytes"]) for role in roles)


def main() -> None:
    """Compute and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--measured", type=Path, help="what throughput.py --out wrote")
    add_out(parser)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    if device.type == "cuda":
        set_float32(arguments.precision)
        torch.backends.cudnn.benchmark = True
    flops, rate = peak_flops(device, dtype), peak_bytes(device)
    case = (arguments.batch_size, dtype.itemsize, flops, rate)
    floors = {f"{pair.teacher}:{pair.student}": pair_floors(pair, *case) for pair in PAIRS}
    table = Table(
        title=f"floors of a step, ms, batch {arguments.batch_size}, {arguments.precision}: "
        f"{flops / 1e9:,.0f} GFLOP/s (product or convolution), {rate / 1e9:.1f} GB/s (copy)",
        caption=machine(device),
    )
    measured = {}
    if arguments.measured:
        measured = json.loads(arguments.measured.read_text())["images_per_second"]
    columns = ["pair", *next(iter(floors.values()))]
    for column in columns + ["live: measured", "× floor", "table: measured", "× floor"] * bool(measured):
        table.add_column(column, justify="right")
    for pair, found in floors.items():
        cells = [pair.replace(":", "\n-> "), *(f"{value:.1f}" for value in found.values())]
        if pair in measured:
            rates = measured[pair]
            for column, roles in (
                (f"live {arguments.precision}", ("student", "teacher")),
                ("table", ("student",)),
            ):
                taken = 1000 * arguments.batch_size / rates[column][0]
                cells += [f"{taken:.1f}", f"{taken / floor(found, roles):.1f}"]
        table.add_row(*cells)
    Console(width=140).print(table)
    write(arguments, device, flops=flops, bytes_per_second=rate, milliseconds=floors)


if __name__ == "__main__":
    main()

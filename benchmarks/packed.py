"""Size and speed of packed binary networks beside full-precision ones, on one core of a CPU.

    python benchmarks/packed.py
    python benchmarks/packed.py --runs 21 --batch_sizes 1 100

For every pair: the full-precision network of the same shape; the binary one as it is trained, in eval mode, which
binarises its weights at every call and multiplies signs in float32; the same with packed weights, by NumPy and by
the compiled kernel. Size is the file's; binary weights are those of the 3x3 convolutions inside. Weights are random:
neither size nor speed depends on them. Images and weights are in channels-last order, as those of runs are by
default. The networks take turns, so that whatever else the machine does meets them alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import add_out, machine, median_and_spread, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from itrd.engine.checkpoint import save_weights
from itrd.export.packed import PackedConv2d, compiled_dots, pack, save_packed
from itrd.models import create_model
from itrd.models.base import FeatureNet
from itrd.models.binary.layers import BinaryConv2d

PAIRS = ("resnet18_cifar:resnet18_1w1a", "resnet20:resnet20_1w1a")


def moved(name: str) -> FeatureNet:
    """A network with random weights and statistics that are not 0 and 1."""
    torch.manual_seed(0)
    net = create_model(name, 10).train()
    with torch.no_grad():
        net(torch.randn(8, 3, 32, 32))
    return net.eval().to(memory_format=torch.channels_last)


def file_sizes(full: FeatureNet, binary: FeatureNet) -> tuple[int, int]:
    """Bytes of the full-precision file and of the packed one."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "full.safetensors", Path(folder) / "packed.safetensors"
        save_weights(paths[0], full, {"arch": full.arch})
        save_packed(binary, paths[1])
        return paths[0].stat().st_size, paths[1].stat().st_size


def weight_bytes(net: nn.Module, packed: nn.Module) -> tuple[int, int]:
    """Bytes of the binary convolutions' weights, latent and packed."""
    latent = sum(m.weight.numel() * 4 for m in net.modules() if isinstance(m, BinaryConv2d))
    return latent, sum(m.bits.numel() for m in packed.modules() if isinstance(m, PackedConv2d))


@torch.no_grad()
def milliseconds(
    nets: dict[str, Callable[[Tensor], Tensor]], batch: int, runs: int
) -> dict[str, list[float]]:
    """Time of a batch through each network, ``runs`` times in turn after one that warms up."""
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in nets}
    for run in range(runs + 1):
        for name, net in nets.items():
            started = time.perf_counter()
            net(images)
            if run:
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="FULL:BINARY")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 100])
    parser.add_argument("--runs", type=int, default=11, help="timed runs of each network")
    add_out(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        title=f"file, binary weights and time of a batch: median of {arguments.runs} runs (± half range), × against "
        "the full-precision network, one thread",
        caption=machine(torch.device("cpu")),
    )
    batches = [f"batch {size}, ms" for size in arguments.batch_sizes]
    for column in ("network", "file, kB", "binary weights, kB", *batches):
        table.add_column(column, justify="left" if column == "network" else "right")
    results = {}
    for text in arguments.pairs:
        full, binary = (moved(name) for name in text.split(":"))
        packed = pack(binary, "numpy")
        nets: dict[str, Callable[[Tensor], Tensor]] = {full.arch: full, binary.arch: binary}
        nets[f"{binary.arch} packed, NumPy"] = packed
        if compiled_dots() is not None:
            nets[f"{binary.arch} packed, compiled"] = pack(binary, "compiled")
        sizes, weights = file_sizes(full, binary), weight_bytes(binary, packed)
        times = {size: milliseconds(nets, size, arguments.runs) for size in arguments.batch_sizes}
        for number, name in enumerate(nets):
            is_packed = number >= 2
            found = [median_and_spread(times[size][name]) for size in arguments.batch_sizes]
            base = [median_and_spread(times[size][full.arch])[0] for size in arguments.batch_sizes]
            table.add_row(
                name,
                "" if number == 1 else f"{sizes[is_packed] / 1e3:,.0f}",
                "" if number == 0 else f"{weights[is_packed] / 1e3:,.1f}",
                *(f"{m:,.1f} ±{s:.0f}% × {b / m:.2f}" for (m, s), b in zip(found, base, strict=True)),
            )
        results[text] = {"file_bytes": sizes, "binary_weight_bytes": weights, "milliseconds": times}
    Console(width=150).print(table)
    write(arguments, torch.device("cpu"), pairs=results)


if __name__ == "__main__":
    main()

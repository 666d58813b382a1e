"""What a cell costs: measured where the ledger knows this hardware, otherwise estimated from operations.

Measured: the images that the cell has to see, a method's first stage included, divided by the median of the images
per second of the records of the same student, teacher, method and precision on this hardware. Estimated: multiply-adds,
three times the student's (forward, and twice backward) and once the teacher's, divided by a rate. The rate is that of
this hardware's records in the cell's precision (without any, in other precisions) whose number of operations is
nearest, as small networks get less out of a machine than large ones; without any records, a rule of thumb for its
kind. Unknown: the images are of no dataset of ``itrd datasets``, so that their number and size show only when they are
read.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

from itrd.bench.cells import Cell, config_of
from itrd.bench.record import Run
from itrd.bench.tracks import Track
from itrd.data import describe_dataset, list_datasets
from itrd.engine.config import DistillConfig, RunConfig
from itrd.engine.device import resolve_device
from itrd.engine.provenance import hardware
from itrd.methods import create_objective
from itrd.models import create_model
from itrd.models.binary.layers import BinaryConv2d

# Multiply-adds a second in training small networks, where no record says better; deliberately modest.
_RULE_OF_THUMB = {"cpu": 1.5e10, "cuda": 1.0e12}
_ANY = "any precision"


@dataclass(frozen=True)
class Cost:
    """What a cell costs.

    Attributes:
        seconds: of training, evaluations not included; 0 where unknown.
        basis: ``measured`` on this hardware, ``estimate`` or ``unknown``.
    """

    seconds: float
    basis: Literal["measured", "estimate", "unknown"]


class Costs:
    """Costs of a track's cells on one machine.

    Args:
        track: what the cells are of.
        runs: records to learn from, of any track.
        device: auto, cpu, cuda or cuda:N.
    """

    def __init__(self, track: Track, runs: Iterable[Run], device: str = "auto") -> None:
        where = resolve_device(device)
        self._track = track
        self._measured: dict[tuple, list[float]] = {}
        rates: dict[tuple[str, bool], dict[float, list[float]]] = {}
        here = hardware(str(where))
        for run in runs:
            if run.hardware == here and run.images_per_second > 0:
                self._measured.setdefault(_key(run.cell, run.precision), []).append(run.images_per_second)
                count = operations(run.cell)
                if count:
                    for precision in (run.precision, _ANY):
                        found = rates.setdefault((precision, _is_binary(run.cell)), {})
                        found.setdefault(count, []).append(run.images_per_second * count)
        # By precision and kind: median rates by the number of operations.
        self._rates = {
            key: {count: statistics.median(values) for count, values in found.items()}
            for key, found in rates.items()
        }
        self._thumb = _RULE_OF_THUMB[where.type]

    def of(self, cell: Cell) -> Cost:
        """The cost of one cell."""
        config = config_of(self._track, cell)
        assert config.data is not None
        if config.data not in list_datasets():
            return Cost(0.0, "unknown")
        epochs = config.epochs + _first_stage_epochs(config)
        images = epochs * (config.train_subset or describe_dataset(config.data).train_size)
        known = self._measured.get(_key(cell, config.precision))
        if known:
            return Cost(images / statistics.median(known), "measured")
        return Cost(images * operations(cell) / self._rate(cell, config.precision), "estimate")

    def _rate(self, cell: Cell, precision: str) -> float:
        """Operations a second of the records whose number of operations is nearest, as a ratio."""
        count = operations(cell)
        for known in (precision, _ANY):
            rates = self._rates.get((known, _is_binary(cell)))
            if rates:
                return rates[min(rates, key=lambda other: abs(math.log(other / count)))]
        return self._thumb


def _key(cell: Cell, precision: str) -> tuple:
    return cell.teacher, cell.student, cell.method, precision


def _is_binary(cell: Cell) -> bool:
    return cell.student.endswith("_1w1a")  # training binarises its weights in every step


def _first_stage_epochs(config: RunConfig) -> int:
    """Epochs before the student's own; the stages themselves exist only once there are networks."""
    if not isinstance(config, DistillConfig):
        return 0
    return sum(getattr(method, "init_epochs", 0) for method in create_objective(config.method).methods)


def operations(cell: Cell) -> float:
    """Multiply-adds of one training image, the method's own not counted; 0 if they cannot be told."""
    try:
        teacher = multiply_adds(cell.teacher) if cell.teacher else 0
        return 3.0 * multiply_adds(cell.student) + teacher
    except KeyError:  # a record of a network that this version does not have
        return 0.0


@cache
def multiply_adds(name: str) -> int:
    """Multiply-adds of a network's convolutions, binary ones included, and linear layers for one 32x32 image."""
    total = 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        weights = module.weight
        assert isinstance(weights, torch.Tensor)
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        total += weights.numel() * positions

    with torch.device("meta"), torch.no_grad():
        net = create_model(name).eval()
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, BinaryConv2d)):
                module.register_forward_hook(count)
        net(torch.zeros(1, 3, 32, 32))
    return total

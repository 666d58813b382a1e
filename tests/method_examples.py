"""Small outputs, networks and set-up methods for the tests of distillation methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from itrd.methods import Batch, Method, Setup, create_method
from itrd.models.base import FeatureNet, Outputs

CLASSES = 5
SAMPLES = 40  # of the imagined training set
MAPS = ((4, 8, 8), (6, 4, 4), (8, 2, 2))
OTHER_MAPS = ((5, 4, 4), (9, 8, 8), (7, 2, 2))


def random_outputs(
    seed: int,
    batch: int = 4,
    maps: Sequence[tuple[int, int, int]] = MAPS,
    width: int = 8,
    dtype: torch.dtype = torch.float64,
    transform: Callable[[Tensor], Tensor] = lambda x: x,
) -> Outputs:
    """Normal numbers in every output, then ``transform``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return transform(torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    return Outputs(
        draw(batch, CLASSES),
        draw(batch, width),
        tuple(draw(batch, *shape) for shape in maps),
        draw(batch, 4, 8, 8),
    )


def example_batch(batch: int = 4) -> Batch:
    return Batch(torch.arange(batch) % CLASSES, torch.arange(batch))


class StubNet(FeatureNet):
    """What set-ups ask a network for: one convolution per map, and a batch norm with random weights."""

    num_classes = CLASSES

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, c, 1) for c in channels)
        self.norms = [nn.BatchNorm2d(c) for c in channels]
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def get_feat_modules(self) -> nn.ModuleList:
        return self.convolutions

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return self.norms


def make_setup(student: Outputs, teacher: Outputs) -> Setup:
    return Setup(
        student,
        teacher,
        StubNet([m.shape[1] for m in student.maps]),
        StubNet([m.shape[1] for m in teacher.maps]),
        student.logits.shape[1],
        torch.arange(SAMPLES) % CLASSES,
    )


def ready(name: str, student: Outputs, teacher: Outputs, seed: int = 0, **settings: Any) -> Method:
    """A method in the precision of the student's outputs, set up for their shapes, in train mode."""
    torch.manual_seed(seed)
    method = create_method(name, **settings)
    method.setup(make_setup(student, teacher))
    return method.to(student.logits.dtype).train()

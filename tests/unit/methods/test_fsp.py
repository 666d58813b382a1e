"""FSP against loops over channels and positions, and what its two stages train."""

from __future__ import annotations

import pytest
import torch

from itrd.errors import UserError
from itrd.methods import Batch, create_method
from itrd.methods.fsp import flow_matrix
from itrd.models.base import Outputs
from method_tools import first_stage_steps, main_steps, moved_by, setup_for, small_task

SHAPES = [(3, 2, 4, 4), (3, 3, 4, 4), (3, 4, 2, 2)]


def outputs(maps: list[torch.Tensor]) -> Outputs:
    return Outputs(torch.zeros(3, 2), None, tuple(maps[1:]), maps[0])


def shrink(f: torch.Tensor, height: int) -> torch.Tensor:
    if f.shape[2] == height:
        return f
    return torch.stack([f[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)


def literal_matrix(lower: torch.Tensor, upper: torch.Tensor, b: int) -> list[list[float]]:
    height = min(lower.shape[2], upper.shape[2])
    lower, upper = shrink(lower, height), shrink(upper, height)
    positions = [(h, w) for h in range(height) for w in range(height)]
    return [
        [
            sum(float(upper[b, q, h, w] * lower[b, p, h, w]) for h, w in positions) / len(positions)
            for p in range(lower.shape[1])
        ]
        for q in range(upper.shape[1])
    ]


def test_value() -> None:
    torch.manual_seed(0)
    maps_s, maps_t = ([torch.randn(shape, dtype=torch.float64) for shape in SHAPES] for _ in range(2))
    expected = 0.0
    for i in range(len(SHAPES) - 1):
        squares = []
        for b in range(3):
            g_s = literal_matrix(maps_s[i], maps_s[i + 1], b)
            g_t = literal_matrix(maps_t[i], maps_t[i + 1], b)
            squares += [
                (x - y) ** 2 for u, v in zip(g_s, g_t, strict=True) for x, y in zip(u, v, strict=True)
            ]
        expected += sum(squares) / len(squares)
    method = create_method("fsp")
    student, teacher = outputs(maps_s), outputs(maps_t)
    method.setup(setup_for(student, teacher))
    labels = torch.zeros(3, dtype=torch.long)
    terms = method(student, teacher, Batch(labels, labels), first_stage=True)
    assert terms["fsp"].item() == pytest.approx(expected, rel=1e-12)
    assert method(student, teacher, Batch(labels, labels)) == {}


def test_large_entries_are_clamped() -> None:
    f = torch.full((2, 3, 4, 4), 1e18, requires_grad=True)
    g = flow_matrix(f, f)
    assert torch.allclose(g, torch.full_like(g, 1e18))
    g.sum().backward()
    assert not f.grad.any()


def test_what_each_stage_trains() -> None:
    task = small_task("fsp")
    stage_one = moved_by(task, lambda: first_stage_steps(task))
    assert {name.split(".")[1] for name in stage_one} == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    stage_two = moved_by(task, lambda: main_steps(task))
    assert {name.split(".")[1] for name in stage_two} == {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}


@pytest.mark.parametrize(("student", "teacher"), [("wrn_16_1", "wrn_16_2"), ("ShuffleV1", "resnet14")])
def test_unequal_channels(student: str, teacher: str) -> None:
    with pytest.raises(UserError, match=r"equally many channels.*attention"):
        small_task("fsp", student, teacher)


def test_unequal_numbers_of_maps() -> None:
    with pytest.raises(UserError, match="one by one"):
        small_task("fsp", "resnet8", "vgg8")

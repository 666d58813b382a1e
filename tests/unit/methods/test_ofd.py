from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from itrd.errors import UserError
from itrd.methods.ofd import margin, partial_square
from method_examples import MAPS, OTHER_MAPS, example_batch, make_setup, random_outputs, ready

STUDENT = random_outputs(1, maps=MAPS)
TEACHER = random_outputs(2, maps=OTHER_MAPS)


def element(s: float, t: float, m: float) -> float:
    if t > 0:
        return (s - t) ** 2
    if t > m:
        return (s - t) ** 2 if s > t else 0.0
    return (s - m) ** 2 if s > m else 0.0


@pytest.mark.parametrize("surplus", [0, 1])
def test_value(surplus: int) -> None:
    teacher = TEACHER._replace(maps=TEACHER.maps[surplus:])
    method = ready("ofd", STUDENT, teacher)
    loss = method(STUDENT, teacher, example_batch())["ofd"].item()

    n, expected = len(teacher.maps), 0.0
    for i in range(n):
        f_s, f_t, margins = STUDENT.maps[i + surplus], teacher.maps[i], method.get_buffer(f"margin_{i}")
        f_t = F.adaptive_avg_pool2d(f_t, f_s.shape[2:])
        x = torch.einsum("oi,bihw->bohw", method.connectors[i][0].weight[:, :, 0, 0], f_s)
        for c in range(x.shape[1]):
            s = (x[:, c] - x[:, c].mean()) / (x[:, c].var(unbiased=False) + 1e-5).sqrt()
            m = float(margins[c])
            pairs = zip(s.flatten().tolist(), f_t[:, c].flatten().tolist(), strict=True)
            expected += sum(element(a, b, m) for a, b in pairs) / len(f_s) / 2 ** (n - 1 - i)
    assert loss == pytest.approx(expected, rel=1e-9)


def test_margin_is_the_mean_of_the_negative_part() -> None:
    weight, bias = torch.tensor([1.0, -0.5, 2.0, 0.1]), torch.tensor([0.3, -1.0, 0.0, 5.0])
    grid = torch.linspace(-30, 0, 300_001, dtype=torch.float64)
    expected = []
    for w, b in zip(weight.abs().double(), bias.double(), strict=True):
        density = (-((grid - b) ** 2) / (2 * w**2)).exp() / (w * math.sqrt(2 * math.pi))
        below = torch.trapezoid(density, grid)
        mean = torch.trapezoid(grid * density, grid)
        expected.append(float(mean / below) if below > 0.001 else -3 * float(w))
    assert margin(weight, bias).tolist() == pytest.approx(expected, rel=1e-5)


def test_margin_of_a_dead_batch_norm() -> None:
    zero = torch.zeros(3)
    assert margin(zero, torch.tensor([-1.0, 0.0, 1.0])).tolist() == pytest.approx([-1.0, 0.0, 0.0])


def test_a_student_below_the_margin_is_left_alone() -> None:
    t = torch.full((2, 3, 2, 2), -1.0)
    s = torch.full_like(t, -5.0).requires_grad_()
    loss = partial_square(s, t, torch.tensor([-0.5, -1.0, -2.0]))
    loss.backward()
    assert loss.item() == 0.0
    assert s.grad.abs().max() == 0


def test_refusals() -> None:
    method = type(ready("ofd", STUDENT, TEACHER))()
    with pytest.raises(UserError, match="setup"):
        method(STUDENT, TEACHER, example_batch())
    setup = make_setup(STUDENT, TEACHER)
    with pytest.raises(UserError, match="get_bn_before_relu"):
        method.setup(type(setup)(**{**vars(setup), "teacher_net": nn.Identity()}))
    with pytest.raises(UserError, match="one batch norm"):
        method.setup(type(setup)(**{**vars(setup), "teacher_net": setup.student_net}))

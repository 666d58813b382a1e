from __future__ import annotations

import math

import pytest
import torch

from itrd.errors import UserError
from itrd.methods import create_method
from method_examples import example_batch, random_outputs, ready

STUDENT, TEACHER = random_outputs(1), random_outputs(2)
BATCH = example_batch()


def softmax(z: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in z) for x in z]


def literal(z_s: torch.Tensor, z_t: torch.Tensor, g: float, weighted: bool) -> float:
    total = 0.0
    for s, t in zip(z_s.tolist(), z_t.tolist(), strict=True):
        powers = [p**g for p in softmax(t)]
        q = [x / sum(powers) for x in powers]
        kl = sum(a * math.log(a / b) for a, b in zip(q, softmax(s), strict=True))
        total += kl * (sum(powers) if weighted else 1)
    return total / len(z_s)


def value(name: str, student, teacher, **settings) -> float:
    return ready(name, student, teacher, **settings)(student, teacher, BATCH)[name].item()


@pytest.mark.parametrize("name", ["ttm", "wttm"])
@pytest.mark.parametrize("g", [0.1, 1.0, 1.7])
def test_value(name: str, g: float) -> None:
    expected = literal(STUDENT.logits, TEACHER.logits, g, name == "wttm")
    assert value(name, STUDENT, TEACHER, g=g) == pytest.approx(expected, rel=1e-10)


def test_exponent_one_is_kd_without_temperature() -> None:
    kd = value("kd", STUDENT, TEACHER, T=1.0)
    assert value("ttm", STUDENT, TEACHER, g=1.0) == pytest.approx(kd, rel=1e-12)
    assert value("wttm", STUDENT, TEACHER, g=1.0) == pytest.approx(kd, rel=1e-12)


@pytest.mark.parametrize("name", ["ttm", "wttm", "kd"])
def test_shift_of_logits_changes_nothing(name: str) -> None:
    shift = torch.tensor([[3.0], [-70.0], [0.0], [9.0]])
    shifted = [o._replace(logits=o.logits + shift) for o in (STUDENT, TEACHER)]
    assert value(name, *shifted) == pytest.approx(value(name, STUDENT, TEACHER), rel=1e-10)


@pytest.mark.parametrize("name", ["ttm", "wttm"])
def test_refuses_an_exponent_of_zero(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: the exponent"):
        create_method(name, g=0)

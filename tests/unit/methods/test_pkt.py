from __future__ import annotations

import math

import pytest
import torch

from method_examples import example_batch, random_outputs, ready

STUDENT, TEACHER = random_outputs(1, width=8), random_outputs(2, width=11)


def literal(e_s: torch.Tensor, e_t: torch.Tensor) -> float:
    n, eps = len(e_s), 1e-7
    probabilities = []
    for e in (e_s, e_t):
        rows = [row / (math.sqrt(float((row**2).sum())) + eps) for row in e]
        kernel = [[(float((a * b).sum()) + 1) / 2 for b in rows] for a in rows]
        probabilities.append([[x / sum(row) for x in row] for row in kernel])
    s, t = probabilities
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += t[i][j] * math.log((t[i][j] + eps) / (s[i][j] + eps))
    return total / n**2


def value(student, teacher) -> float:
    return ready("pkt", student, teacher)(student, teacher, example_batch())["pkt"].item()


def test_value() -> None:
    assert value(STUDENT, TEACHER) == pytest.approx(literal(STUDENT.embedding, TEACHER.embedding), rel=1e-10)


def test_positive_scaling_and_rotation_change_nothing() -> None:
    scale = torch.tensor([[2.0], [30.0], [1.0], [1e15]], dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    other = STUDENT._replace(embedding=scale * STUDENT.embedding @ rotation)
    assert value(other, TEACHER) == pytest.approx(value(STUDENT, TEACHER), rel=1e-5)  # up to eps = 1e-7


def test_a_zero_row_has_a_finite_gradient() -> None:
    e = STUDENT.embedding.clone()
    e[1] = 0
    e.requires_grad_()
    student = STUDENT._replace(embedding=e)
    ready("pkt", student, TEACHER)(student, TEACHER, example_batch())["pkt"].backward()
    assert e.grad.isfinite().all()


def test_opposite_rows_stay_finite() -> None:
    e = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
    e = torch.cat([e, -e]).requires_grad_()
    student, teacher = (random_outputs(s, batch=2, dtype=torch.float32) for s in (1, 2))
    student = student._replace(embedding=e)
    loss = ready("pkt", student, teacher)(student, teacher, example_batch(2))["pkt"]
    loss.backward()
    assert loss.isfinite()
    assert e.grad.isfinite().all()

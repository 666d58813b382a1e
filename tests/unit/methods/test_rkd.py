from __future__ import annotations

import math

import pytest
import torch

from method_examples import example_batch, random_outputs, ready

STUDENT, TEACHER = random_outputs(1, batch=5, width=8), random_outputs(2, batch=5, width=11)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def literal(e_s: torch.Tensor, e_t: torch.Tensor) -> tuple[float, float]:
    n = len(e_s)
    d, a = [], []
    for e in (e_s, e_t):
        distance = [[math.dist(e[i].tolist(), e[j].tolist()) for j in range(n)] for i in range(n)]
        positive = [x for row in distance for x in row if x > 0]
        mean = sum(positive) / len(positive)
        d.append([x / mean for row in distance for x in row])
        cosines = []
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    u, v = e[j] - e[i], e[k] - e[i]
                    length = float(u.norm() * v.norm())
                    cosines.append(float(u @ v) / length if length else 0.0)
        a.append(cosines)
    means = [sum(huber(x - y) for x, y in zip(*pair, strict=True)) / len(pair[0]) for pair in (d, a)]
    return means[0], means[1]


def value(student, teacher) -> float:
    method = ready("rkd", student, teacher)
    return method.loss(method(student, teacher, example_batch(5))).item()


def test_value() -> None:
    distance, angle = literal(STUDENT.embedding, TEACHER.embedding)
    terms = ready("rkd", STUDENT, TEACHER)(STUDENT, TEACHER, example_batch(5))
    assert terms["distance"].item() == pytest.approx(distance, rel=1e-9)
    assert terms["angle"].item() == pytest.approx(angle, rel=1e-9)
    assert value(STUDENT, TEACHER) == pytest.approx(25 * distance + 50 * angle, rel=1e-9)


def test_rotation_translation_and_scaling_change_nothing() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    moved = STUDENT._replace(embedding=5.0 * STUDENT.embedding @ rotation + 3.0)
    assert value(moved, TEACHER) == pytest.approx(value(STUDENT, TEACHER), rel=1e-9)


def test_the_order_of_the_batch_does_not_matter() -> None:
    order = [2, 0, 4, 1, 3]
    outputs = [o._replace(embedding=o.embedding[order]) for o in (STUDENT, TEACHER)]
    assert value(*outputs) == pytest.approx(value(STUDENT, TEACHER), rel=1e-12)


def test_a_batch_of_one_has_no_loss() -> None:
    student, teacher = random_outputs(1, batch=1), random_outputs(2, batch=1)
    assert value(student, teacher) == 0.0

from __future__ import annotations

import pytest
import torch

from method_examples import MAPS, OTHER_MAPS, example_batch, random_outputs, ready

STUDENT = random_outputs(1, maps=MAPS)
TEACHER = random_outputs(2, maps=OTHER_MAPS)


def literal(f_s, f_t) -> float:
    n = len(f_s)
    grams = []
    for f in (f_s, f_t):
        gram = torch.tensor(
            [[float((f[i] * f[j]).sum()) for j in range(n)] for i in range(n)], dtype=torch.float64
        )
        grams.append([[gram[i, j] / sum(gram[i] ** 2) ** 0.5 for j in range(n)] for i in range(n)])
    return sum(float(grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def value(student, teacher) -> float:
    loss = ready("similarity", student, teacher)(student, teacher, example_batch())["similarity"]
    assert loss.shape == ()
    return loss.item()


def test_value() -> None:
    assert value(STUDENT, TEACHER) == pytest.approx(literal(STUDENT.maps[-1], TEACHER.maps[-1]), rel=1e-10)


def test_rotation_and_scaling_of_the_features_change_nothing() -> None:
    f = STUDENT.maps[-1]
    rotation, _ = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))
    turned = (3.0 * f.flatten(1) @ rotation).reshape(f.shape)
    other = STUDENT._replace(maps=(*STUDENT.maps[:-1], turned))
    assert value(other, TEACHER) == pytest.approx(value(STUDENT, TEACHER), rel=1e-9)


def test_equal_features_have_no_loss() -> None:
    assert value(STUDENT, STUDENT) == 0.0

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from itrd.errors import UserError
from itrd.methods.kdsvd import aligned_vectors, teacher_vectors
from method_examples import MAPS, OTHER_MAPS, example_batch, random_outputs, ready

STUDENT = random_outputs(1, maps=MAPS)
TEACHER = random_outputs(2, maps=tuple((c, h + 1, h + 1) for c, h, _ in MAPS))


def literal(maps_s, maps_t, k: int) -> float:
    total, batch = 0.0, len(maps_s[0])
    for b in range(batch):
        before = None
        for f_s, f_t in zip(maps_s, maps_t, strict=True):
            x_s, x_t = (f[b].flatten(1).T.numpy() for f in (f_s, f_t))
            _, s, vt = np.linalg.svd(x_t)
            _, _, vs = np.linalg.svd(x_s, full_matrices=False)
            s = s[:k] / math.sqrt(sum(s[:k] ** 2))
            now_t, now_s = [], []
            for i in range(k):
                v = vt[i] * (1 if vt[i].sum() > 0 else -1)
                cosines = [float(v @ w) for w in vs[: k + 3]]
                j = int(np.argmax(np.abs(cosines)))
                now_t.append(v * s[i])
                now_s.append(vs[j] * np.sign(cosines[j]) * s[i])
            if before is not None:
                for i in range(k):
                    for c in range(len(now_t[i])):
                        for d in range(len(before[0][i])):
                            r_t = math.exp(-((now_t[i][c] - before[0][i][d]) ** 2) / 8)
                            r_s = math.exp(-((now_s[i][c] - before[1][i][d]) ** 2) / 8)
                            total += (r_s - r_t) ** 2
            before = (now_t, now_s)
    return total / batch


@pytest.mark.parametrize("k", [1, 2])
def test_value(k: int) -> None:
    loss = ready("kdsvd", STUDENT, TEACHER, k=k)(STUDENT, TEACHER, example_batch())["kdsvd"]
    assert loss.item() == pytest.approx(literal(STUDENT.maps, TEACHER.maps, k), rel=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (2, 7, 2, 2)])
def test_gradient_of_the_vectors(shape: tuple[int, ...]) -> None:
    """More positions than channels, and the other way round, against finite differences."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    v_t = teacher_vectors(torch.randn(shape, generator=generator, dtype=torch.float64), 2)
    weights = torch.randn(v_t.shape, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (aligned_vectors(x, v_t) * weights).sum(), f)


def test_positive_scaling_changes_nothing() -> None:
    method = ready("kdsvd", STUDENT, TEACHER)
    other = STUDENT._replace(maps=tuple(1e5 * m for m in STUDENT.maps))
    values = [method(s, TEACHER, example_batch())["kdsvd"].item() for s in (STUDENT, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_refusals() -> None:
    with pytest.raises(UserError, match="same channels"):
        ready("kdsvd", STUDENT, random_outputs(2, maps=OTHER_MAPS))
    one = STUDENT._replace(maps=STUDENT.maps[:1])
    with pytest.raises(UserError, match="two or more maps"):
        ready("kdsvd", one, one)
    with pytest.raises(UserError, match="k must be"):
        ready("kdsvd", STUDENT, TEACHER, k=0)

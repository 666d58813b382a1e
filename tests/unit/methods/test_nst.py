from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from itrd.methods.nst import nst_loss
from method_examples import MAPS, OTHER_MAPS, example_batch, random_outputs, ready

STUDENT = random_outputs(1, maps=MAPS)
TEACHER = random_outputs(2, maps=OTHER_MAPS)


def literal(f_s: torch.Tensor, f_t: torch.Tensor) -> float:
    h = min(f_s.shape[2], f_t.shape[2])
    f_s, f_t = F.adaptive_avg_pool2d(f_s, h), F.adaptive_avg_pool2d(f_t, h)

    def mean_kernel(f: torch.Tensor, g: torch.Tensor) -> float:
        total = 0.0
        for b in range(len(f)):
            for c in range(f.shape[1]):
                for d in range(g.shape[1]):
                    u, v = f[b, c].flatten(), g[b, d].flatten()
                    total += float(u @ v / (u.norm() * v.norm())) ** 2
        return total / (len(f) * f.shape[1] * g.shape[1])

    return mean_kernel(f_t, f_t) + mean_kernel(f_s, f_s) - 2 * mean_kernel(f_s, f_t)


def value(student, teacher) -> float:
    return ready("nst", student, teacher)(student, teacher, example_batch())["nst"].item()


def test_value() -> None:
    expected = sum(literal(*pair) for pair in zip(STUDENT.maps, TEACHER.maps, strict=True))
    assert value(STUDENT, TEACHER) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("c_s", "c_t", "size"), [(3, 4, 5), (9, 3, 3), (3, 9, 3), (8, 12, 2)])
def test_both_ways_to_compute_agree(c_s: int, c_t: int, size: int) -> None:
    """More positions than channels, and the other way round."""
    generator = torch.Generator().manual_seed(c_s)
    f_s, f_t = (torch.randn(3, c, size, size, generator=generator, dtype=torch.float64) for c in (c_s, c_t))
    assert nst_loss(f_s, f_t).item() == pytest.approx(literal(f_s, f_t), rel=1e-10)


def test_scaling_and_order_of_channels_change_nothing() -> None:
    scaled = []
    for m in STUDENT.maps:
        factors = torch.linspace(0.1, 1e3, m.shape[1], dtype=torch.float64)[:, None, None]
        scaled.append((m * factors).flip(1))
    other = STUDENT._replace(maps=tuple(scaled))
    assert value(other, TEACHER) == pytest.approx(value(STUDENT, TEACHER), rel=1e-9)


def test_equal_maps_have_no_loss() -> None:
    assert value(STUDENT, STUDENT) == pytest.approx(0.0, abs=1e-14)

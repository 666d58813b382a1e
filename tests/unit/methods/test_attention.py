from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from method_examples import MAPS, OTHER_MAPS, example_batch, random_outputs, ready

STUDENT = random_outputs(1, maps=MAPS)
TEACHER = random_outputs(2, maps=OTHER_MAPS)


def literal(maps_s, maps_t) -> float:
    loss = 0.0
    for f_s, f_t in zip(maps_s, maps_t, strict=True):
        h = min(f_s.shape[2], f_t.shape[2])
        f_s, f_t = F.adaptive_avg_pool2d(f_s, h), F.adaptive_avg_pool2d(f_t, h)
        terms = []
        for b in range(len(f_s)):
            q = []
            for f in (f_s[b], f_t[b]):
                v = torch.stack([(f[:, y, x] ** 2).sum() for y in range(h) for x in range(h)])
                q.append(v / (v**2).sum().sqrt())
            terms += [(s - t) ** 2 for s, t in zip(*q, strict=True)]
        loss += float(sum(terms)) / len(terms)
    return loss


def value(student, teacher) -> float:
    return ready("attention", student, teacher)(student, teacher, example_batch())["attention"].item()


def test_value() -> None:
    assert value(STUDENT, TEACHER) == pytest.approx(literal(STUDENT.maps, TEACHER.maps), rel=1e-12)


def test_surplus_maps_are_left_over() -> None:
    shorter = TEACHER._replace(maps=TEACHER.maps[:2])
    assert value(STUDENT, shorter) == pytest.approx(literal(STUDENT.maps[:2], shorter.maps), rel=1e-12)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e12])
def test_positive_scaling_of_a_sample_changes_nothing(factor: float) -> None:
    scale = torch.tensor([1.0, factor, 1.0, 1.0], dtype=torch.float64)[:, None, None, None]
    scaled = STUDENT._replace(maps=tuple(m * scale for m in STUDENT.maps))
    assert value(scaled, TEACHER) == pytest.approx(value(STUDENT, TEACHER), rel=1e-9)


def test_order_and_sign_of_channels_do_not_matter() -> None:
    turned = STUDENT._replace(maps=tuple(-m.flip(1) for m in STUDENT.maps))
    assert value(turned, TEACHER) == pytest.approx(value(STUDENT, TEACHER), rel=1e-12)

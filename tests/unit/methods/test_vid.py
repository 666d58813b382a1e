from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from itrd.errors import UserError
from method_examples import MAPS, OTHER_MAPS, example_batch, random_outputs, ready

STUDENT = random_outputs(1, maps=MAPS)
TEACHER = random_outputs(2, maps=OTHER_MAPS)


def test_value() -> None:
    method = ready("vid", STUDENT, TEACHER)
    with torch.no_grad():
        for g in method.gaussians:
            g.log_scale.normal_(generator=torch.Generator().manual_seed(3))
    loss = method(STUDENT, TEACHER, example_batch())["vid"].item()

    expected = 0.0
    for g, f_s, f_t in zip(method.gaussians, STUDENT.maps, TEACHER.maps, strict=True):
        h = min(f_s.shape[2], f_t.shape[2])
        f_s, f_t = F.adaptive_avg_pool2d(f_s, h), F.adaptive_avg_pool2d(f_t, h)
        weights = [g.regressor[i].weight[:, :, 0, 0] for i in (0, 2, 4)]
        terms = []
        for b in range(len(f_s)):
            for y in range(h):
                for x in range(h):
                    hidden = (weights[1] @ (weights[0] @ f_s[b, :, y, x]).clamp(min=0)).clamp(min=0)
                    mu = weights[2] @ hidden
                    for c in range(len(mu)):
                        var = math.log(1 + math.exp(g.log_scale[c].item())) + 1e-5
                        square = ((mu[c] - f_t[b, c, y, x]) ** 2).item()
                        terms.append(0.5 * (square / var + math.log(var)))
        expected += sum(terms) / len(terms)
    assert loss == pytest.approx(expected, rel=1e-11)


def test_the_variance_starts_at_its_setting_and_is_trained() -> None:
    method = ready("vid", STUDENT, TEACHER, init_pred_var=2.0)
    for g in method.gaussians:
        assert (g.variance() + method.eps).tolist() == pytest.approx([2.0] * len(g.log_scale), rel=1e-6)
    method(STUDENT, TEACHER, example_batch())["vid"].backward()
    assert all(g.log_scale.grad.abs().min() > 0 for g in method.gaussians)


def test_a_large_log_scale_does_not_overflow() -> None:
    student, teacher = (random_outputs(s, dtype=torch.float32) for s in (1, 2))
    method = ready("vid", student, teacher)
    with torch.no_grad():
        for g in method.gaussians:
            g.log_scale.fill_(200.0)
    loss = method(student, teacher, example_batch())["vid"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_refuses_a_variance_below_its_floor() -> None:
    with pytest.raises(UserError, match="init_pred_var"):
        ready("vid", STUDENT, TEACHER, init_pred_var=0.0)


@pytest.mark.parametrize("start", [1e-4, 5.0, 800.0, 1e30])
def test_the_variance_may_start_anywhere(start: float) -> None:
    method = ready("vid", STUDENT, TEACHER, init_pred_var=start, eps=1e-5)
    for g in method.gaussians:
        assert (g.variance() + method.eps).tolist() == pytest.approx([start] * len(g.log_scale), rel=1e-3)

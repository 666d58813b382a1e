from __future__ import annotations

import numpy as np
import pytest
import torch

from itrd.errors import UserError
from itrd.methods import create_method
from method_examples import example_batch, random_outputs, ready

STUDENT, TEACHER = random_outputs(1), random_outputs(2)
BATCH = example_batch()


def value(student, teacher, **settings) -> float:
    method = ready("dist", student, teacher, **settings)
    return method.loss(method(student, teacher, BATCH)).item()


@pytest.mark.parametrize("times_T2", [True, False])
def test_value(times_T2: bool) -> None:
    T = 3.0
    p_s, p_t = ((o.logits / T).exp().numpy() for o in (STUDENT, TEACHER))
    p_s, p_t = (p / p.sum(1, keepdims=True) for p in (p_s, p_t))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)])
    expected = (T**2 if times_T2 else 1) * (0.5 * inter + 3 * intra)
    ours = value(STUDENT, TEACHER, T=T, beta=0.5, gamma=3.0, times_T2=times_T2)
    assert ours == pytest.approx(expected, rel=1e-10)


def test_shift_of_logits_changes_nothing() -> None:
    shifted = STUDENT._replace(logits=STUDENT.logits + torch.tensor([[3.0], [-70.0], [0.0], [9.0]]))
    assert value(shifted, TEACHER) == pytest.approx(value(STUDENT, TEACHER), rel=1e-10)


def test_equal_logits_have_no_loss() -> None:
    assert value(STUDENT, STUDENT) == pytest.approx(0.0, abs=1e-12)


def test_no_variation_counts_as_uncorrelated() -> None:
    flat = STUDENT._replace(logits=torch.full_like(STUDENT.logits, 0.1))
    assert value(flat, TEACHER) == pytest.approx(16 * (2 + 2))


def test_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(UserError, match="temperature"):
        create_method("dist", T=0)

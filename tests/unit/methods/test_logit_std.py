from __future__ import annotations

import pytest
import torch

from itrd.errors import UserError
from itrd.methods import create_method
from itrd.methods.logit_std import standardize
from itrd.methods.objective import Objective
from method_examples import example_batch, random_outputs, ready

STUDENT, TEACHER = random_outputs(1), random_outputs(2)
BATCH = example_batch()


def literal(z: torch.Tensor) -> torch.Tensor:
    rows = []
    for row in z:
        mean = sum(row) / len(row)
        std = (sum((x - mean) ** 2 for x in row) / (len(row) - 1)) ** 0.5
        rows.append(torch.stack([(x - mean) / (std + 1e-7) for x in row]))
    return torch.stack(rows)


@pytest.mark.parametrize("base", ["kd(T=2)", "dkd(beta=6)", "dist", "ttm(g=0.3)", "wttm"])
def test_is_the_base_method_on_standardised_logits(base: str) -> None:
    method = ready("logit_std", STUDENT, TEACHER, base=base)
    plain = Objective.create(base).methods[0].double()
    outputs = [o._replace(logits=literal(o.logits)) for o in (STUDENT, TEACHER)]
    expected = plain.loss(plain(*outputs, BATCH)).item()
    assert method.loss(method(STUDENT, TEACHER, BATCH)).item() == pytest.approx(expected, rel=1e-10)


def test_scale_and_shift_of_a_samples_logits_change_nothing() -> None:
    scale = torch.tensor([[3.0], [70.0], [1.0], [1e15]], dtype=torch.float64)
    moved = STUDENT._replace(logits=STUDENT.logits * scale + 2 * scale)
    method = ready("logit_std", STUDENT, TEACHER)
    values = [method(s, TEACHER, BATCH)["kd"].item() for s in (STUDENT, moved)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)  # up to the 1e-7 beside std


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 1000])
def test_equal_logits_become_zeros_without_a_gradient(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (0.0, 1e-20, 1.0, 1e4, 1e18):
        z = (torch.randn(500, 1, generator=generator) * size).expand(-1, classes).clone().requires_grad_()
        standard = standardize(z)
        assert standard.abs().max() == 0
        (standard * torch.randn(standard.shape, generator=generator)).sum().backward()
        assert z.grad is not None
        assert z.grad.abs().max() == 0


def test_needs_what_its_base_needs() -> None:
    assert create_method("logit_std", base="dkd").needs_labels
    assert not create_method("logit_std").needs_labels
    with pytest.raises(UserError, match=r"have no labels, and logit_std cannot do without"):
        Objective.create("logit_std(base='dkd')", ce_weight=0).expect_labels(False, "x")


def test_warm_up_of_the_base_method() -> None:
    method = ready("logit_std", STUDENT, TEACHER, base="dkd")
    terms = method(STUDENT, TEACHER, BATCH)
    full = method.loss(terms).item()
    method.start_epoch(5)
    assert method.loss(terms).item() == pytest.approx(0.25 * full)


def test_notation() -> None:
    objective = Objective.create("logit_std")
    assert (objective.weights, objective.ce_weight) == ([9.0], 0.1)
    written = Objective.create("1*ce + 9*logit_std(base='dkd(beta=6)')")
    assert Objective.create(written.describe()).describe() == written.describe()
    both = Objective.create("kd + logit_std").double()
    _, shown = both(STUDENT, TEACHER, BATCH)
    assert set(shown) == {"ce", "kd", "logit_std.kd"}


@pytest.mark.parametrize("base", ["itrd", "kd + dkd", "0.5*kd", "ce", "logit_std", "none"])
def test_refuses_other_bases(base: str) -> None:
    with pytest.raises(UserError, match="one method that reads logits only"):
        create_method("logit_std", base=base)

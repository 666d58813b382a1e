from __future__ import annotations

import pytest

from itrd.errors import UserError
from method_examples import example_batch, random_outputs, ready

STUDENT, TEACHER = random_outputs(1, width=8), random_outputs(2, width=11)


def test_value() -> None:
    method = ready("correlation", STUDENT, TEACHER, feat_dim=6)
    loss = method(STUDENT, TEACHER, example_batch())["correlation"].item()
    delta = []
    for b in range(4):
        e_s = method.embed_s.weight @ STUDENT.embedding[b] + method.embed_s.bias
        e_t = method.embed_t.weight @ TEACHER.embedding[b] + method.embed_t.bias
        delta.append((e_s - e_t).abs())
    products = [(delta[b] * delta[b + 1]).sum().item() for b in range(3)]
    assert loss == pytest.approx(sum(products) / 3, rel=1e-12)


def test_depends_on_the_order_but_not_on_its_direction() -> None:
    method = ready("correlation", STUDENT, TEACHER)

    def value(order: list[int]) -> float:
        outputs = [o._replace(embedding=o.embedding[order]) for o in (STUDENT, TEACHER)]
        return method(*outputs, example_batch())["correlation"].item()

    assert value([3, 2, 1, 0]) == pytest.approx(value([0, 1, 2, 3]), rel=1e-12)
    assert value([0, 2, 1, 3]) != pytest.approx(value([0, 1, 2, 3]), rel=1e-3)


def test_a_batch_of_one_has_no_loss() -> None:
    student, teacher = random_outputs(1, batch=1), random_outputs(2, batch=1)
    loss = ready("correlation", student, teacher)(student, teacher, example_batch(1))["correlation"]
    loss.backward()
    assert loss.item() == 0.0


def test_both_linear_maps_are_trained() -> None:
    method = ready("correlation", STUDENT, TEACHER)
    method(STUDENT, TEACHER, example_batch())["correlation"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.parameters())
    assert len(list(method.parameters())) == 4


def test_refuses_a_width_of_zero() -> None:
    with pytest.raises(UserError, match="feat_dim"):
        ready("correlation", STUDENT, TEACHER, feat_dim=0)

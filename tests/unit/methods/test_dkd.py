from __future__ import annotations

import math

import pytest
import torch

from itrd.errors import UserError
from itrd.methods import create_method
from itrd.methods.objective import Objective
from method_examples import example_batch, random_outputs, ready

STUDENT, TEACHER = random_outputs(1), random_outputs(2)
BATCH = example_batch()


def softmax(z: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in z) for x in z]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def literal(z_s: torch.Tensor, z_t: torch.Tensor, labels: torch.Tensor, T: float) -> tuple[float, float]:
    target, nontarget = [], []
    for s, t, y in zip((z_s / T).tolist(), (z_t / T).tolist(), labels.tolist(), strict=True):
        p, q = softmax(t), softmax(s)
        target.append(kl([p[y], 1 - p[y]], [q[y], 1 - q[y]]))
        nontarget.append(kl(softmax(t[:y] + t[y + 1 :]), softmax(s[:y] + s[y + 1 :])))
    return T**2 * sum(target) / len(target), T**2 * sum(nontarget) / len(nontarget)


def test_value() -> None:
    method = ready("dkd", STUDENT, TEACHER, alpha=0.7, beta=3.0, T=2.0)
    terms = method(STUDENT, TEACHER, BATCH)
    target, nontarget = literal(STUDENT.logits, TEACHER.logits, BATCH.labels, 2.0)
    assert terms["target"].item() == pytest.approx(target, rel=1e-10)
    assert terms["nontarget"].item() == pytest.approx(nontarget, rel=1e-10)
    assert method.loss(terms).item() == pytest.approx(0.7 * target + 3 * nontarget, rel=1e-10)


def test_with_its_weights_it_is_kd() -> None:
    """KL(p || q) = KL(b(p) || b(q)) + (1 - p_y) KL(p^ || q^), for one sample."""
    student, teacher = (o._replace(logits=o.logits[:1]) for o in (STUDENT, TEACHER))
    batch = example_batch(1)
    terms = ready("dkd", student, teacher)(student, teacher, batch)
    p_y = (teacher.logits / 4).softmax(1)[0, 0]
    kd = ready("kd", student, teacher)(student, teacher, batch)["kd"]
    assert (terms["target"] + (1 - p_y) * terms["nontarget"]).item() == pytest.approx(kd.item(), rel=1e-10)


def test_shift_of_logits_changes_nothing() -> None:
    shifted = STUDENT._replace(logits=STUDENT.logits + torch.tensor([[3.0], [-70.0], [0.0], [1e3]]))
    method = ready("dkd", STUDENT, TEACHER)
    values = [method.loss(method(s, TEACHER, BATCH)).item() for s in (STUDENT, shifted)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_underflowing_probabilities_stay_finite() -> None:
    z = torch.zeros(4, 5)
    z[:, 0] = 4000.0  # the label of the first sample only
    z.requires_grad_()
    teacher = random_outputs(2, dtype=torch.float32)
    student = teacher._replace(logits=z)
    method = ready("dkd", student, teacher)
    loss = method.loss(method(student, teacher, BATCH))
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_warm_up() -> None:
    method = ready("dkd", STUDENT, TEACHER)
    terms = method(STUDENT, TEACHER, BATCH)
    full = method.loss(terms).item()
    factor = method.progress
    for epoch, expected in ((1, 0.05), (10, 0.5), (20, 1.0), (240, 1.0)):
        method.start_epoch(epoch)
        assert method.progress is factor  # in place: a captured step sees it
        assert method.loss(terms).item() == pytest.approx(expected * full, rel=1e-6)
    none = create_method("dkd", warmup=0)
    none.start_epoch(1)
    assert none.progress.item() == 1.0


def test_the_warm_up_factor_moves_with_the_module_and_is_no_state() -> None:
    objective = Objective.create("dkd")
    assert not objective.state_dict()
    objective.to(torch.float64)
    objective.start_epoch(5)
    assert objective.methods[0].progress.dtype == torch.float64
    loss, shown = objective(STUDENT, TEACHER, BATCH)
    expected = shown["ce"] + 0.25 * (shown["dkd.target"] + 8 * shown["dkd.nontarget"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_refusals() -> None:
    with pytest.raises(UserError, match="temperature"):
        create_method("dkd", T=0)
    with pytest.raises(UserError, match="warmup"):
        create_method("dkd", warmup=-1)

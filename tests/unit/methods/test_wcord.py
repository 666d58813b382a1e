"""WCoRD against loops, its transport plan against POT, and its heads' Lipschitz bound."""

from __future__ import annotations

import copy

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from itrd.errors import UserError
from itrd.methods import Batch, Method, create_method
from itrd.methods.contrast import contrast_loss
from itrd.methods.wcord import dual_loss, sinkhorn_plan, transport_loss
from itrd.models.base import Outputs
from method_tools import main_steps, setup_for, small_task


def outputs(f: Tensor) -> Outputs:
    return Outputs(torch.zeros(len(f), 3, dtype=f.dtype), f)


def make(dtype: torch.dtype = torch.float64, **settings: object) -> Method:
    torch.manual_seed(0)
    method = create_method("wcord", **{"feat_dim": 4, "K": 6, **settings})
    method.setup(setup_for(outputs(torch.zeros(2, 5)), outputs(torch.zeros(2, 7)), torch.arange(20) % 3))
    return method.to(dtype)


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Outputs, Outputs, Batch]:
    g = torch.Generator().manual_seed(seed)
    indices = torch.randperm(20, generator=g)[:4]
    f_s = torch.randn(4, 5, generator=g).to(dtype).requires_grad_()
    return outputs(f_s), outputs(torch.randn(4, 7, generator=g).to(dtype)), Batch(indices % 3, indices)


@pytest.mark.parametrize("M", [1.0, 6.0])
def test_global_term(M: float) -> None:
    method = make(M=M)
    m_s, m_t = method.memory.student.clone(), method.memory.teacher.clone()
    drawn: list[Tensor] = []
    draw = method.memory.draw
    method.memory.draw = lambda indices: drawn.append(draw(indices)) or drawn[-1]
    student, teacher, info = batch(1)
    loss = method(student, teacher, info)["global"].item()
    method.eval()  # the heads as the call left them: no further power iteration
    v_s = torch.nn.functional.normalize(method.head_s(student.embedding)).detach()
    v_t = torch.nn.functional.normalize(method.head_t(teacher.embedding)).detach()
    expected = 0.0
    for i, row in enumerate(drawn[0].tolist()):
        for v, memory in ((v_s[i], m_t), (v_t[i], m_s)):
            scores = [float(v @ memory[j]) for j in row]
            expected -= (scores[0] - M * sum(scores[1:]) / 6) / 4
    assert loss == pytest.approx(expected, rel=1e-12)


def test_weights_and_terms() -> None:
    method = make(lambda_1=0.7, lambda_2=0.2)
    terms = method(*batch(1))
    assert set(terms) == {"global", "local"}
    assert method.loss(terms).item() == pytest.approx(
        0.7 * terms["global"].item() + 0.2 * terms["local"].item(), rel=1e-12
    )


def test_nce_critic() -> None:
    method = make(critic="nce")
    m_s, m_t = method.memory.student.clone(), method.memory.teacher.clone()
    contrast = torch.randint(20, (4, 7))
    method.memory.draw = lambda indices: contrast
    student, teacher, info = batch(1)
    loss = method(student, teacher, info)["global"]
    method.eval()
    v_s = torch.nn.functional.normalize(method.head_s(student.embedding))
    v_t = torch.nn.functional.normalize(method.head_t(teacher.embedding))
    tau = float(torch.tensor(0.07))
    scores_s = torch.einsum("bd,bjd->bj", v_s, m_t[contrast]) / tau
    scores_t = torch.einsum("bd,bjd->bj", v_t, m_s[contrast]) / tau
    expected = sum(contrast_loss(s, (20 * s.exp().mean()).log(), 20) for s in (scores_s, scores_t))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_local_term_does_not_train_the_teachers_head() -> None:
    method = make()
    student, teacher, info = batch(1)
    method(student, teacher, info)["local"].backward()
    assert all(p.grad is None for p in method.head_t.parameters())
    assert all(p.grad is not None for p in method.head_s.parameters())
    assert student.embedding.grad.abs().sum() > 0


def test_local_term_takes_the_plan_as_constant() -> None:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    v_s = unit(torch.randn(5, 3, dtype=torch.float64)).requires_grad_()
    v_t = unit(torch.randn(5, 3, dtype=torch.float64))
    plan = sinkhorn_plan(1 - v_s.detach() @ v_t.T)
    expected = sum(
        float(plan[i, j]) * (1 - float(v_s[i].detach() @ v_t[j])) for i in range(5) for j in range(5)
    )
    loss = transport_loss(v_s, v_t)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert torch.allclose(v_s.grad, -plan @ v_t)


# --- transport -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (7, 7), (16, 16), (64, 64), (5, 9)])
def test_plan_equals_that_of_pot(n: int, m: int) -> None:
    torch.manual_seed(n)
    cost = 2 * torch.rand(n, m, dtype=torch.float64)
    theirs = ot.bregman.sinkhorn_log(
        np.full(n, 1 / n), np.full(m, 1 / m), cost.numpy(), 0.1, numItermax=50, stopThr=0.0, warn=False
    )
    assert np.allclose(sinkhorn_plan(cost).numpy(), theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plan_is_near_its_limit_with_uniform_marginals(dtype: torch.dtype) -> None:
    """Fifty iterations are enough for costs of unit vectors."""
    torch.manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(2, 64, 128, dtype=dtype), dim=2)
    cost = 1 - v[0] @ v[1].T
    plan = sinkhorn_plan(cost)
    assert (plan >= 0).all()
    assert torch.allclose(plan.sum(1), torch.full((64,), 1 / 64, dtype=dtype), rtol=1e-5)
    assert torch.allclose(plan.sum(0), torch.full((64,), 1 / 64, dtype=dtype), rtol=1e-4)
    uniform = np.full(64, 1 / 64)
    limit = ot.sinkhorn(uniform, uniform, cost.double().numpy(), 0.1, method="sinkhorn_log", stopThr=1e-13)
    assert np.allclose(plan.numpy(), limit, rtol=1e-3, atol=1e-7)


def test_plan_of_equal_costs_is_uniform() -> None:
    assert torch.allclose(sinkhorn_plan(torch.ones(3, 4)), torch.full((3, 4), 1 / 12))


# --- heads -----------------------------------------------------------------------------------------------


def test_heads_are_lipschitz() -> None:
    task = small_task("wcord(K=8, feat_dim=16)")
    main_steps(task, 10)
    method = task.objective.methods[0].eval()
    for head in (method.head_s, method.head_t):
        assert float(torch.linalg.matrix_norm(head.weight.detach(), 2)) == pytest.approx(1, abs=0.02)
        x, y = torch.randn(2, 200, head.weight.shape[1])
        ratio = (head(x) - head(y)).norm(dim=1) / (x - y).norm(dim=1)
        assert ratio.max() <= 1.02


def test_one_power_iteration_per_step() -> None:
    method = make()
    spectral = method.head_t.parametrizations.weight[0]
    weight = method.head_t.parametrizations.weight.original.detach()
    u = spectral._u.clone()
    v = torch.nn.functional.normalize(weight.T @ u, dim=0)
    # torch takes u from v first: one pass of both.
    u = torch.nn.functional.normalize(weight @ spectral._v, dim=0)
    v = torch.nn.functional.normalize(weight.T @ u, dim=0)
    method(*batch(1))
    assert torch.allclose(spectral._u, u)
    assert torch.allclose(spectral._v, v)


def test_a_restored_state_continues_to_the_same_numbers() -> None:
    method = make(torch.float32)
    method(*batch(1, torch.float32))
    state, rng = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    going_on = [method.loss(method(*batch(seed, torch.float32))) for seed in (2, 3)]
    other = make(torch.float32)
    other(*batch(9, torch.float32))
    other.load_state_dict(state)
    torch.set_rng_state(rng)
    restored = [other.loss(other(*batch(seed, torch.float32))) for seed in (2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(going_on, restored, strict=True))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e18])
@pytest.mark.parametrize("critic", ["dual", "nce"])
def test_extreme_embeddings(scale: float, critic: str) -> None:
    method = make(torch.float32, critic=critic)
    torch.nn.init.zeros_(method.head_s.bias)
    torch.nn.init.zeros_(method.head_t.bias)
    student, teacher, info = batch(1, torch.float32)
    f_s = (scale * student.embedding).detach().requires_grad_()
    loss = method.loss(method(outputs(f_s), outputs(scale * teacher.embedding), info))
    loss.backward()
    assert loss.isfinite()
    assert f_s.grad.isfinite().all()


def test_refused_settings() -> None:
    with pytest.raises(UserError, match="critic"):
        create_method("wcord", critic="primal")
    with pytest.raises(UserError, match="wcord: mode"):
        create_method("wcord", mode="loose")


def test_dual_loss_of_equal_scores_is_zero() -> None:
    assert dual_loss(torch.full((3, 5), 0.25)).item() == 0

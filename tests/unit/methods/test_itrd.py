"""ITRD against a literal re-derivation, bit for bit against the plain formula, and where it degenerates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from itrd.errors import UserError
from itrd.methods import Batch, Setup, create_method
from itrd.methods.itrd import ITRD, correlation_loss, mutual_loss
from itrd.models.base import Outputs


def method_and_batch(f_s: Tensor, f_t: Tensor, **settings: float) -> tuple[ITRD, Outputs, Outputs, Batch]:
    n = len(f_s)
    logits = torch.zeros(n, 3, dtype=f_s.dtype)
    student, teacher = Outputs(logits, f_s), Outputs(logits, f_t)
    method = create_method("itrd", **settings)
    assert isinstance(method, ITRD)
    torch.manual_seed(0)
    method.setup(Setup(student, teacher, torch.nn.Identity(), torch.nn.Identity(), 3, torch.zeros(n)))
    return method.to(f_s.dtype), student, teacher, Batch(torch.zeros(n).long(), torch.arange(n))


def plain_correlation(e: Tensor, f_t: Tensor, alpha: float) -> Tensor:
    e = (e - e.mean(0)) / e.std(0)
    f = (f_t - f_t.mean(0)) / f_t.std(0)
    c = torch.einsum("bx,bx->x", e, f) / len(e)
    return (c - 1).abs().pow(2).pow(alpha).sum().log2()


def plain_mutual(g: Tensor, f_t: Tensor) -> Tensor:
    g = torch.nn.functional.normalize(g)
    f = torch.nn.functional.normalize(f_t)
    gram_s = g @ g.T
    gram_st = gram_s * (f @ f.T)
    a, c = gram_s / gram_s.trace(), gram_st / gram_st.trace()
    return (a.pow(2) - c.pow(2)).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [3, 16, 64])
def test_equals_the_plain_formula_bit_for_bit(batch: int, dtype: torch.dtype) -> None:
    torch.manual_seed(batch)
    f_t = torch.randn(batch, 12, dtype=dtype).relu() + 0.1 * torch.randn(batch, 12, dtype=dtype)
    for ours, plain in (
        (lambda x: correlation_loss(x, f_t, 1.01), lambda x: plain_correlation(x, f_t, 1.01)),
        (lambda x: mutual_loss(x, f_t), lambda x: plain_mutual(x, f_t)),
    ):
        x = torch.randn(batch, 12, dtype=dtype)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        loss_a, loss_b = ours(a), plain(b)
        assert torch.equal(loss_a, loss_b)
        loss_a.backward()
        loss_b.backward()
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(("d_s", "d_t"), [(6, 6), (5, 9)])
def test_equals_a_literal_re_derivation(d_s: int, d_t: int) -> None:
    torch.manual_seed(1)
    n, alpha = 7, 1.5
    f_s, f_t = torch.randn(n, d_s, dtype=torch.float64), torch.randn(n, d_t, dtype=torch.float64)
    method, student, teacher, batch = method_and_batch(f_s, f_t, alpha=alpha)
    terms = method(student, teacher, batch)

    weight, bias = method.embed.weight.tolist(), method.embed.bias.tolist()
    rows_s, rows_t = f_s.tolist(), f_t.tolist()
    e = [
        [sum(w * x for w, x in zip(weight[u], row, strict=True)) + bias[u] for u in range(d_t)]
        for row in rows_s
    ]

    def standard(column: list[float]) -> list[float]:
        mean = sum(column) / n
        std = math.sqrt(sum((x - mean) ** 2 for x in column) / (n - 1))
        return [(x - mean) / std for x in column]

    total = 0.0
    for unit in range(d_t):
        a, b = standard([row[unit] for row in e]), standard([row[unit] for row in rows_t])
        c = sum(x * y for x, y in zip(a, b, strict=True)) / n
        total += (abs(c - 1) ** 2) ** alpha
    assert terms["corr"].item() == pytest.approx(math.log2(total), rel=1e-12)

    def unit_rows(rows: list[list[float]]) -> list[list[float]]:
        return [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in rows]

    def gram(rows: list[list[float]]) -> list[list[float]]:
        return [[sum(x * y for x, y in zip(p, q, strict=True)) for q in rows] for p in rows]

    gram_s = gram(unit_rows(rows_s if d_s == d_t else e))
    gram_t = gram(unit_rows(rows_t))
    joint = [[x * y for x, y in zip(p, q, strict=True)] for p, q in zip(gram_s, gram_t, strict=True)]
    trace_s, trace_joint = (sum(m[i][i] for i in range(n)) for m in (gram_s, joint))
    expected = sum(
        (gram_s[i][j] / trace_s) ** 2 - (joint[i][j] / trace_joint) ** 2 for i in range(n) for j in range(n)
    )
    assert terms["mutual"].item() == pytest.approx(expected, rel=1e-10)


def degenerate_inputs() -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    f_s, f_t = torch.randn(8, 6), torch.randn(8, 6)
    dead = f_t.clone()
    dead[:, 2] = 0
    constant = f_t.clone()
    constant[:, 1] = 3.1416
    zero_row = f_s.clone()
    zero_row[3] = 0
    return {
        "dead teacher unit": (f_s, dead),
        "constant teacher unit": (f_s, constant),
        "all teacher units dead": (f_s, torch.zeros_like(f_t)),
        "zero student row": (zero_row, f_t),
        "zero student": (torch.zeros_like(f_s), f_t),
        "both zero": (torch.zeros_like(f_s), torch.zeros_like(f_t)),
        "equal samples": (f_s[:1].repeat(8, 1), f_t[:1].repeat(8, 1)),
        "batch of one": (f_s[:1], f_t[:1]),
        "batch of two": (f_s[:2], f_t[:2]),
        "two equal samples": (f_s[:1].repeat(2, 1), f_t[:1].repeat(2, 1)),
        "huge": (f_s * 1e18, f_t * 1e18),
        "overflowing squares": (f_s * 1e30, f_t * 1e30),
        "tiny": (f_s * 1e-30, f_t * 1e-30),
        "identical": (f_t.clone(), f_t),
    }


@pytest.mark.parametrize("alpha", [0.5, 1.01, 2.0])
@pytest.mark.parametrize("name", degenerate_inputs())
def test_stays_finite_on_degenerate_input(name: str, alpha: float) -> None:
    f_s, f_t = (x.clone() for x in degenerate_inputs()[name])
    f_s.requires_grad_()
    method, student, teacher, batch = method_and_batch(f_s, f_t, alpha=alpha)
    loss = method.loss(method(student, teacher, batch))
    loss.backward()
    assert torch.isfinite(loss)
    for gradient in (f_s.grad, *(p.grad for p in method.parameters())):
        assert gradient is None or torch.isfinite(gradient).all()


def test_a_dead_unit_does_not_disturb_the_others() -> None:
    """A constant unit counts as uncorrelated, |c - 1| = 1, and gives no gradient."""
    torch.manual_seed(3)
    e, f_t = torch.randn(16, 5), torch.randn(16, 5)
    f_t[:, 4] = 0.7
    a, b = e.clone().requires_grad_(), e[:, :4].clone().requires_grad_()
    with_dead = correlation_loss(a, f_t, 1.5)
    without = correlation_loss(b, f_t[:, :4], 1.5)
    assert 2 ** with_dead.item() == pytest.approx(2 ** without.item() + 1, rel=1e-6)
    with_dead.backward()
    assert torch.equal(a.grad[:, 4], torch.zeros(16))


def test_correlation_ignores_per_unit_affine_maps_of_the_teacher() -> None:
    torch.manual_seed(4)
    e, f_t = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    scaled = f_t * torch.tensor([2.0, 0.1, 7.0, 1.0, 3.0]) + torch.arange(5)
    assert correlation_loss(e, scaled, 1.01).item() == pytest.approx(
        correlation_loss(e, f_t, 1.01).item(), rel=1e-10
    )


def test_a_perfect_match_reaches_the_value_that_the_docstring_states() -> None:
    torch.manual_seed(5)
    n, d, alpha = 16, 10, 1.5
    f_t = torch.randn(n, d, dtype=torch.float64)
    expected = math.log2(d) - 2 * alpha * math.log2(n)
    assert correlation_loss(f_t, f_t, alpha).item() == pytest.approx(expected, abs=1e-10)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="alpha must be positive"):
        create_method("itrd", alpha=0)
    with pytest.raises(UserError, match="no setting 'alpa'; it has: alpha, lambda_corr, lambda_mutual"):
        create_method("itrd", alpa=1)
    outputs = Outputs(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(UserError, match="call setup"):
        create_method("itrd")(outputs, outputs, Batch(torch.zeros(2).long(), torch.arange(2)))

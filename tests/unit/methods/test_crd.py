"""CRD against loops over samples, what it draws, and that a restored state continues to the same numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from itrd.errors import UserError
from itrd.methods import Batch, Method, create_method
from itrd.methods.contrast import ContrastMemory, Normalizer, contrast_loss
from itrd.models.base import Outputs
from method_tools import main_steps, setup_for, small_task

train_labels = torch.tensor([0] * 5 + [1] * 9 + [2] * 6)[
    torch.randperm(20, generator=torch.Generator().manual_seed(1))
]


def outputs(f: Tensor) -> Outputs:
    return Outputs(torch.zeros(len(f), 3, dtype=f.dtype), f)


def make(labels: Tensor = train_labels, dtype: torch.dtype = torch.float64, **settings: object) -> Method:
    torch.manual_seed(0)
    method = create_method("crd", **{"feat_dim": 4, "K": 6, **settings})
    method.setup(setup_for(outputs(torch.zeros(2, 5)), outputs(torch.zeros(2, 7)), labels))
    return method.to(dtype)


def call(method: Method, seed: int, size: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    f_s = torch.randn(size, 5, generator=g, dtype=torch.float64).to(dtype)
    f_t = torch.randn(size, 7, generator=g, dtype=torch.float64).to(dtype)
    indices = torch.randperm(len(method.memory), generator=g)[:size]
    return method(outputs(f_s), outputs(f_t), Batch(method.memory.labels[indices], indices))["crd"]


class Literal:
    """The formulas of the docstring, one sample and one negative at a time."""

    def __init__(self, method: Method) -> None:
        self.m_s, self.m_t = method.memory.student.tolist(), method.memory.teacher.tolist()
        self.method, self.z = method, None

    @staticmethod
    def unit(v: list[float]) -> list[float]:
        norm = math.sqrt(sum(x * x for x in v))
        return [x / norm for x in v]

    def __call__(self, f_s: Tensor, f_t: Tensor, indices: list[int], contrast: list[list[int]]) -> float:
        tau, n, k = float(torch.tensor(0.07)), len(self.m_s), len(contrast[0]) - 1
        v_s = [self.unit(v) for v in self.method.embed_s(f_s).tolist()]
        v_t = [self.unit(v) for v in self.method.embed_t(f_t).tolist()]
        sides = []
        for v, memory in ((v_s, self.m_t), (v_t, self.m_s)):
            sides.append(
                [
                    [math.exp(sum(a * b for a, b in zip(v[i], memory[j], strict=True)) / tau) for j in row]
                    for i, row in enumerate(contrast)
                ]
            )
        if self.z is None:
            self.z = [n * sum(map(sum, side)) / (len(side) * (k + 1)) for side in sides]
        loss = 0.0
        for side, z in zip(sides, self.z, strict=True):
            for row in side:
                o = [x / z for x in row]
                loss -= math.log(o[0] / (o[0] + k / n + 1e-7)) / len(side)
                loss -= sum(math.log((k / n) / (x + k / n + 1e-7)) for x in o[1:]) / len(side)
        for memory, v in ((self.m_s, v_s), (self.m_t, v_t)):
            for i, y in enumerate(indices):
                memory[y] = self.unit([0.5 * a + 0.5 * b for a, b in zip(memory[y], v[i], strict=True)])
        return loss


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_three_calls(mode: str) -> None:
    method = make(mode=mode)
    literal = Literal(method)
    drawn: list[Tensor] = []
    draw = method.memory.draw
    method.memory.draw = lambda indices: drawn.append(draw(indices)) or drawn[-1]
    for step in range(3):
        f_s, f_t = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
        indices = torch.randperm(20)[:4]
        loss = method(outputs(f_s), outputs(f_t), Batch(train_labels[indices], indices))["crd"]
        expected = literal(f_s, f_t, indices.tolist(), drawn[-1].tolist())
        assert loss.item() == pytest.approx(expected, rel=1e-12), step
        assert torch.allclose(
            method.memory.student, torch.tensor(literal.m_s, dtype=torch.float64), atol=1e-14
        )
        assert torch.allclose(
            method.memory.teacher, torch.tensor(literal.m_t, dtype=torch.float64), atol=1e-14
        )
        loss.backward()  # the memory has changed since the scores were taken


# --- which samples ---------------------------------------------------------------------------------------


def memory(labels: Tensor, K: int, mode: str = "exact") -> ContrastMemory:
    return ContrastMemory(labels, 2, K=K, mode=mode, momentum=0.5)


def check_negatives(m: ContrastMemory, own: int, contrast: Tensor, distinct: bool) -> None:
    assert (m.labels[contrast[:, 1:]] != own).all()
    if distinct:
        assert all(len(set(row)) == m.k for row in contrast[:, 1:].tolist())


@pytest.mark.parametrize(
    ("k", "distinct"), [(6, True), (11, True), (12, None), (15, None), (16, False), (40, False)]
)
def test_negatives_are_of_other_classes_and_distinct_where_they_can_be(k: int, distinct: bool | None) -> None:
    """Classes of 5, 9 and 6 of 20 samples: 15, 11 and 14 samples of other classes."""
    torch.manual_seed(k)
    m = memory(train_labels, k)
    for own in range(3):
        index = int((train_labels == own).nonzero()[0])
        contrast = m.draw(torch.full((50,), index))
        others = int((train_labels != own).sum())
        assert contrast.shape == (50, 1 + k)
        assert (contrast[:, 0] == index).all()
        check_negatives(m, own, contrast, k <= others if distinct is None else distinct)
        if k == others:
            assert (contrast[:, 1:].sort(dim=1).values == (train_labels != own).nonzero()[:, 0]).all()
        if k > others:
            assert max(len(set(row)) for row in contrast[:, 1:].tolist()) <= others


def uniform(counts: Tensor, expected: float, degrees: int, spread: float = 1.0) -> bool:
    statistic = float(((counts - expected) ** 2 / (expected * spread)).sum())
    low, high = chi2.ppf([1e-4, 1 - 1e-4], degrees)
    return low < statistic < high


@pytest.mark.parametrize("k", [1, 4, 8, 12, 30])
def test_negatives_are_uniform(k: int) -> None:
    """Every sample of another class equally often; the variance is that of drawing (without) replacement."""
    torch.manual_seed(3)
    m, draws = memory(train_labels, k), 20000
    own = 0
    index = int((train_labels == own).nonzero()[0])
    others = (train_labels != own).nonzero()[:, 0]
    counts = m.draw(torch.full((draws,), index))[:, 1:].flatten().bincount(minlength=20)[others].double()
    n = len(others)
    # Sum of squares over cells, hypergeometric: each draw of k is spread (n - k)/(n - 1) times as widely.
    spread = (n - k) / (n - 1) if n >= k else 1.0
    assert uniform(counts, draws * k / n, n - 1, spread)


def test_pairs_of_negatives_are_uniform() -> None:
    torch.manual_seed(4)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    draws = 30000
    contrast = memory(labels, 2).draw(torch.zeros(draws, dtype=torch.long))[:, 1:].sort(dim=1).values
    counts = (contrast[:, 0] * 8 + contrast[:, 1]).bincount(minlength=64).double()
    assert (counts > 0).sum() == 15
    assert uniform(counts[counts > 0], draws / 15, 14)


def test_samples_of_a_batch_draw_independently() -> None:
    torch.manual_seed(5)
    contrast = memory(torch.arange(100) % 2, 25).draw(torch.zeros(200, dtype=torch.long))[:, 1:]
    shared = [
        len(set(a) & set(b)) for a, b in zip(contrast[::2].tolist(), contrast[1::2].tolist(), strict=True)
    ]
    assert abs(sum(shared) / len(shared) - 12.5) < 1.0  # 25 * 25 / 50 expected


def test_relaxed_positives() -> None:
    torch.manual_seed(6)
    m, draws = memory(train_labels, 4, "relax"), 20000
    for own, size in ((0, 5), (1, 9), (2, 6)):
        index = int((train_labels == own).nonzero()[0])
        contrast = m.draw(torch.full((draws,), index))
        check_negatives(m, own, contrast, distinct=True)
        counts = contrast[:, 0].bincount(minlength=20).double()
        assert (counts > 0).nonzero()[:, 0].tolist() == (train_labels == own).nonzero()[:, 0].tolist()
        assert uniform(counts[counts > 0], draws / size, size - 1)


def test_labels_with_gaps_and_a_class_of_one() -> None:
    labels = torch.tensor([7, 3, 3, 7, 9])
    for mode in ("exact", "relax"):
        for K in (2, 3, 4, 9):
            m = memory(labels, K, mode)
            contrast = m.draw(torch.arange(5))
            assert (labels[contrast[:, 0]] == labels).all()
            assert (labels[contrast[:, 1:]] != labels[:, None]).all()


# --- state -----------------------------------------------------------------------------------------------


def test_first_call_fixes_z() -> None:
    method = make()
    call(method, 1)
    z = method.normalizer_s.log_z.clone()
    assert z != 0
    call(method, 2)
    assert torch.equal(method.normalizer_s.log_z, z)


def test_eval_mode_changes_nothing() -> None:
    method = make().eval()
    before = copy.deepcopy(method.state_dict())
    call(method, 1)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_initial_memory() -> None:
    m = ContrastMemory(torch.arange(5000) % 2, 48, K=4, mode="exact", momentum=0.5)
    for bank in (m.student, m.teacher):
        assert bank.abs().max() < 0.25  # sqrt(3 / 48)
        assert bank.square().sum(dim=1).mean().item() == pytest.approx(1, rel=0.01)
    assert not torch.equal(m.student, m.teacher)


def test_a_restored_state_continues_to_the_same_numbers() -> None:
    method = make(dtype=torch.float32)
    for seed in range(3):
        call(method, seed, dtype=torch.float32)
    state, rng = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    going_on = [call(method, seed, dtype=torch.float32) for seed in range(3, 6)]
    other = make(dtype=torch.float32)
    call(other, 99, dtype=torch.float32)
    other.load_state_dict(state)
    torch.set_rng_state(rng)
    restored = [call(other, seed, dtype=torch.float32) for seed in range(3, 6)]
    assert all(torch.equal(a, b) for a, b in zip(going_on, restored, strict=True))
    final = method.state_dict()
    assert all(torch.equal(value, final[key]) for key, value in other.state_dict().items())
    assert {"memory.student", "memory.teacher", "normalizer_s.log_z", "normalizer_t.known"} <= set(state)


def test_trains_in_a_task() -> None:
    task = small_task("crd(K=8, feat_dim=16)")
    before = {key: value.clone() for key, value in task.objective.state_dict().items()}
    main_steps(task)
    after = task.objective.state_dict()
    for key in ("embed_s.weight", "embed_t.weight", "memory.student", "memory.teacher"):
        assert not torch.equal(before[f"methods.0.{key}"], after[f"methods.0.{key}"]), key


# --- numbers at the edge ---------------------------------------------------------------------------------


def test_loss_equals_the_plain_formula_and_survives_where_it_overflows() -> None:
    torch.manual_seed(0)
    scores = 10 * torch.randn(6, 9, dtype=torch.float64)
    n, c = 50, 8 / 50
    log_z = Normalizer(n).double()(scores)
    o = scores.exp() / log_z.exp()
    plain = -((o[:, 0] / (o[:, 0] + c + 1e-7)).log() + (c / (o[:, 1:] + c + 1e-7)).log().sum(1)).mean()
    assert contrast_loss(scores, log_z, n).item() == pytest.approx(plain.item(), rel=1e-12)
    huge = (1000 * scores.float()).requires_grad_()
    loss = contrast_loss(huge, Normalizer(n)(huge), n)
    loss.backward()
    assert loss.isfinite()
    assert huge.grad.isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e18])
def test_extreme_embeddings(scale: float) -> None:
    method = make(dtype=torch.float32)
    torch.nn.init.zeros_(method.embed_s.bias)
    torch.nn.init.zeros_(method.embed_t.bias)
    f_s = (scale * torch.randn(2, 5)).requires_grad_()
    indices = torch.tensor([3, 8])
    loss = method(outputs(f_s), outputs(scale * torch.randn(2, 7)), Batch(train_labels[indices], indices))[
        "crd"
    ]
    loss.backward()
    assert loss.isfinite()
    assert f_s.grad.isfinite().all()
    assert all(value.isfinite().all() for value in method.state_dict().values())


def test_single_class() -> None:
    with pytest.raises(UserError, match="one label"):
        make(labels=torch.zeros(9, dtype=torch.long))


@pytest.mark.parametrize(
    "setting", [{"K": 0}, {"T": 0.0}, {"feat_dim": 0}, {"momentum": 1.5}, {"mode": "loose"}], ids=str
)
def test_refused_settings(setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match="crd"):
        create_method("crd", **setting)

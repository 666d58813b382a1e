"""FT against loops over channels and positions, and what its two stages train."""

from __future__ import annotations

import pytest
import torch

from itrd.errors import UserError
from itrd.methods import create_method
from itrd.methods.factor import factor_loss
from itrd.models.base import Outputs
from method_tools import first_stage_steps, main_steps, moved_by, setup_for, small_batch, small_task


def phi(f: torch.Tensor) -> list[float]:
    c, h, w = f.shape
    v = [sum(float(f[k, i, j]) ** 2 for k in range(c)) / c for i in range(h) for j in range(w)]
    norm = sum(x * x for x in v) ** 0.5
    return [x / norm for x in v]


def test_value() -> None:
    torch.manual_seed(0)
    f_s, f_t = torch.randn(3, 4, 4, 4, dtype=torch.float64), torch.randn(3, 4, 2, 2, dtype=torch.float64)
    pooled = torch.stack([f_s[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)
    distances = [abs(x - y) for b in range(3) for x, y in zip(phi(pooled[b]), phi(f_t[b]), strict=True)]
    expected = sum(distances) / len(distances)
    assert factor_loss(f_s, f_t).item() == pytest.approx(expected, rel=1e-12)
    assert factor_loss(f_t, f_s).item() == pytest.approx(expected, rel=1e-12)


def test_zero_factors() -> None:
    f_s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = factor_loss(f_s, torch.randn(2, 3, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert not f_s.grad.any()


def test_what_each_stage_trains() -> None:
    task = small_task("factor", "resnet8", "wrn_16_1")
    method = "objective.methods.0."
    stage_one = moved_by(task, lambda: first_stage_steps(task))
    paraphraser = {name for name in task.state_dict() if name.startswith(method + "paraphraser.")}
    assert stage_one == paraphraser
    assert len(paraphraser) == 12

    stage_two = moved_by(task, lambda: main_steps(task))
    assert not stage_two & paraphraser
    assert any(name.startswith(method + "translator.") for name in stage_two)
    assert any(name.startswith("student.fc") for name in stage_two)
    ft = task.objective.methods[0]
    assert all(p.grad is None or not p.requires_grad for p in ft.paraphraser.parameters())
    assert not any(m.training for m in ft.paraphraser.modules())
    assert all(m.training for m in ft.translator.modules())


def test_no_gradient_is_collected_for_the_frozen_paraphraser() -> None:
    task = small_task("factor")
    task.train()
    task(*small_batch()).loss.backward()
    assert all(p.grad is None for p in task.objective.methods[0].paraphraser.parameters())


@pytest.mark.parametrize(
    ("arch", "rate"),
    [
        ("resnet8x4", 0.01),
        ("wrn_16_1", 0.01),
        ("vgg8", None),
        ("ResNet50", None),
        ("MobileNetV2", None),
        ("", None),
    ],
)
def test_learning_rate_of_the_first_stage(arch: str, rate: float | None) -> None:
    net = torch.nn.Identity()
    net.arch = arch
    maps = Outputs(torch.zeros(2, 2), None, (torch.zeros(2, 4, 4, 4),))
    method = create_method("factor", init_epochs=7)
    method.setup(setup_for(maps, maps, net=net))
    stage = method.first_stage()
    assert (stage.learning_rate, stage.epochs) == (rate, 7)


def test_sizes() -> None:
    """9 C^2 + 9 C c + 9 c^2 weights a side, c = C/2, and the biases."""
    method = create_method("factor")
    maps_s = Outputs(torch.zeros(2, 2), None, (torch.zeros(2, 6, 4, 4),))
    maps_t = Outputs(torch.zeros(2, 2), None, (torch.zeros(2, 9, 4, 4),))
    method.setup(setup_for(maps_s, maps_t))
    count = sum(p.numel() for p in method.paraphraser.parameters())
    assert count == 2 * 9 * (81 + 36 + 16) + (9 + 4 + 4) + (4 + 9 + 9)
    count = sum(p.numel() for p in method.translator.parameters())
    assert count == 9 * (36 + 24 + 16) + 3 * (6 + 4 + 4)


@pytest.mark.parametrize("k", [0, -1, 0.1])
def test_k_without_factors(k: float) -> None:
    maps = Outputs(torch.zeros(2, 2), None, (torch.zeros(2, 4, 4, 4),))
    with pytest.raises(UserError, match="factor: k"):
        create_method("factor", k=k).setup(setup_for(maps, maps))


def test_no_first_stage() -> None:
    assert create_method("factor", init_epochs=0).first_stage() is None

"""The Python surface with names and with objects of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import itrd
from itrd.errors import UserError


class Own(nn.Module):
    """A classifier that knows nothing of this package."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("method", ["kd", "itrd", "kd + itrd(alpha=1.5)"])
def test_distill_any_modules(method: str, tiny: dict[str, Any]) -> None:
    teacher, student = Own(12), Own(6)
    before = [p.clone() for p in teacher.parameters()]
    start = student.head.weight.clone()
    result = itrd.distill(teacher, student, data="digits", method=method, **tiny)
    assert result.student is student
    assert len(result.history) == 2
    assert not torch.equal(start, student.head.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert not teacher.training


def test_distill_with_names_and_a_method_object(teacher_folder: Path, tiny: dict[str, Any]) -> None:
    method = itrd.create_method("itrd", alpha=1.5)
    result = itrd.distill(str(teacher_folder), "resnet8", method=method, **tiny)
    assert result.record["data"]["name"] == "digits[train=60,test=40]"
    assert "alpha=1.5" in result.record["objective"]


def test_clean_track_updates_batch_norms_once(teacher_folder: Path, tiny: dict[str, Any]) -> None:
    counts = {}
    for track in ("reference", "clean"):
        result = itrd.distill(
            str(teacher_folder), "wrn_16_1", method="itrd", track=track, **{**tiny, "epochs": 1}
        )
        counts[track] = {
            name: int(m.num_batches_tracked)
            for name, m in result.student.named_modules()
            if isinstance(m, nn.BatchNorm2d)
        }
    doubled = {name for name in counts["clean"] if counts["reference"][name] == 2 * counts["clean"][name]}
    assert doubled == {"block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"}
    assert set(counts["clean"].values()) == {4}


def test_train_own_module_on_own_dataset(tiny: dict[str, Any]) -> None:
    data = itrd.load_dataset("digits").subset(train=50, test=30)
    net = Own(6)
    start = net.head.weight.clone()
    result = itrd.train(net, data, epochs=1)
    assert result.student is net
    assert not torch.equal(start, net.head.weight)
    assert result.record["data"]["name"] == "digits[train=50,test=30]"
    assert itrd.train("resnet8", data, epochs=1).record["data"] == result.record["data"]


@pytest.mark.parametrize("method", ["reviewkd", "abound", "crd", "itrd", "factor"])
def test_a_method_object_can_be_used_again(method: str, teacher_folder: Path, tiny: dict[str, Any]) -> None:
    settings = {"init_epochs": 1} if method in ("abound", "factor") else {}
    made = itrd.create_method(method, **settings)
    scores = [
        itrd.distill(str(teacher_folder), "resnet8", method=made, **{**tiny, "epochs": 1}).last.train["loss"]
        for _ in range(2)
    ]
    assert scores[0] == scores[1]


def test_no_hook_stays_on_a_users_module(tiny: dict[str, Any]) -> None:
    teacher, student = Own(6), Own(4)
    itrd.distill(teacher, student, data="digits", method="itrd", **{**tiny, "epochs": 1})
    assert not [m for net in (teacher, student) for m in net.modules() if m._forward_pre_hooks]


def test_evaluate(tiny: dict[str, Any]) -> None:
    result = itrd.train("resnet8", "digits", **{**tiny, "test_subset": None})
    again = itrd.evaluate(result.student, "digits")
    assert again["top1"] == pytest.approx(result.last.test["top1"])


def test_wrong_use_is_named(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="has 7 classes and digits"):
        itrd.distill(Own(4, classes=7), Own(4), data="digits", method="kd", **tiny)
    with pytest.raises(UserError, match="name the dataset"):
        itrd.distill(Own(4), Own(4), method="kd")
    with pytest.raises(UserError, match="unknown setting 'epoch'; did you mean"):
        itrd.distill(Own(4), Own(4), data="digits", method="kd", epoch=3)
    with pytest.raises(UserError, match="unknown setting 'lr'; did you mean 'learning_rate'"):
        itrd.train(Own(4), lr=0.1)
    same = Own(4)
    with pytest.raises(UserError, match="are the same module"):
        itrd.distill(same, same, data="digits", method="kd", **tiny)
    with pytest.raises(UserError, match="track must be 'reference' or 'clean', got 'referense'"):
        itrd.distill(Own(4), Own(4), data="digits", method="kd", track="referense")
    with pytest.raises(UserError, match="no linear layer"):
        itrd.distill(
            nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), Own(4), data="digits", method="itrd", **tiny
        )


def test_importing_the_package_is_cheap() -> None:
    code = "import itrd, sys; itrd.list_models(); itrd.list_methods(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"

"""Settings: defaults that depend on others, labels, identity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from itrd.data.cifar import LAYOUTS
from itrd.data.datasets import ImageDataset, Split
from itrd.data.views import Own
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.rates import milestone_rate, rate_of
from itrd.engine.record import label_of
from itrd.errors import UserError
from itrd.stats import paired_difference, summarize


def test_defaults_are_the_published_protocol() -> None:
    config = TrainConfig(model="wrn_16_2", data="cifar100").resolved()
    assert (config.epochs, config.batch_size, config.learning_rate) == (240, 64, 0.05)
    assert config.milestones == [150, 180, 210]
    assert config.protocol() == "protocol"


@pytest.mark.parametrize("student", ["MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_slow_learners(student: str) -> None:
    config = DistillConfig(teacher="t", student=student, data="cifar100")
    assert config.resolved().learning_rate == 0.01
    assert config.protocol() == "protocol"


@pytest.mark.parametrize(
    "change",
    [{"epochs": 12}, {"batch_size": 128}, {"learning_rate": 0.1}, {"train_subset": 10}, {"data": "digits"}],
)
def test_any_change_of_schedule_or_data_is_another_track(change: dict) -> None:
    assert TrainConfig(**{"model": "wrn_16_2", "data": "cifar100", **change}).protocol() == "custom"


def test_what_belongs_to_the_label() -> None:
    config = TrainConfig(model="wrn_16_2", data="cifar100", seed=3, device="cuda")
    assert config.protocol() == "protocol"
    assert TrainConfig(model="wrn_16_2", data="cifar100", precision="bf16").protocol() == "protocol, bf16"
    clean = DistillConfig(teacher="t", student="resnet8", data="cifar100", track="clean")
    assert clean.protocol() == "protocol, clean track"
    larger = DistillConfig(teacher="t", student="resnet8", data="cifar100", teacher_size=64)
    assert larger.protocol() == "protocol, teacher's own images"


def cifar100(train: int = 50_000, test: int = 10_000, **changes: Any) -> ImageDataset:
    """A dataset of CIFAR-100's measures; memory that nobody reads is never taken."""
    layout = LAYOUTS["cifar100"]
    splits = [Split(np.zeros((n, 3, 32, 32), np.uint8), np.arange(n) % 100) for n in (train, test)]
    names = tuple(map(str, range(100)))
    data = ImageDataset("cifar100", 100, names, *splits, layout.mean, layout.std, padding=4, flip=True)
    return replace(data, **changes)


@pytest.mark.parametrize(
    "other",
    [
        {"name": "mine"},
        {"train": 49_999},
        {"test": 9_999},
        {"padding": 0},
        {"flip": False},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.25, 0.25, 0.25)},
        {"augmentation": Own(32, lambda images: images)},
    ],
)
def test_other_images_are_another_track_whatever_the_settings_say(other: dict[str, Any]) -> None:
    config = TrainConfig(model="wrn_16_2", data="cifar100")
    assert label_of(config, cifar100()) == "protocol"
    assert label_of(config, cifar100(**other)) == "custom"


def test_what_happened_belongs_to_the_label() -> None:
    config = TrainConfig(model="wrn_16_2", data="cifar100", precision="bf16")
    assert label_of(config, cifar100(), processes=2) == "protocol, bf16, 2 processes"
    assert label_of(config, cifar100(), skipped=1) == "protocol, bf16, 1 step skipped"
    assert label_of(TrainConfig(model="wrn_16_2", data="digits"), cifar100(), skipped=1) == "custom"


def test_milestones_scale_with_the_epochs() -> None:
    assert TrainConfig(model="resnet8", epochs=16).resolved().milestones == [10, 12, 14]
    assert TrainConfig(model="resnet8", epochs=1).resolved().milestones == [1]
    assert TrainConfig(model="resnet8", epochs=16, milestones=[3]).resolved().milestones == [3]


def test_rate_by_epoch() -> None:
    rates = [
        milestone_rate(0.05, 0.1, [150, 180, 210], epoch) for epoch in (1, 150, 151, 180, 181, 210, 211, 240)
    ]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])


def test_cosine_with_warm_up() -> None:
    """The binary recipe: 0.02, 0.04, ... 0.1 over five epochs, then cosine to zero over the remaining 596."""
    config = TrainConfig(model="resnet8", epochs=600, learning_rate=0.1, schedule="cosine", warmup_epochs=5)
    rates = [rate_of(config.resolved(), epoch) for epoch in range(1, 601)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=1e-12)
    for epoch in (5, 6, 303, 600):  # counted from 1
        expected = 0.05 * (1 + math.cos(math.pi * (epoch - 5) / 596))
        assert rates[epoch - 1] == pytest.approx(expected, rel=1e-12)
    assert rates[302] == pytest.approx(0.05)
    assert 0 < rates[599] < 1e-6
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_cosine_without_warm_up() -> None:
    config = TrainConfig(model="resnet8", epochs=4, learning_rate=0.2, schedule="cosine").resolved()
    assert config.milestones is None
    assert [rate_of(config, e) for e in (1, 2, 3, 4)] == pytest.approx(
        [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5)]
    )


def test_steps_with_warm_up() -> None:
    config = TrainConfig(model="resnet8", epochs=8, learning_rate=0.1, milestones=[3, 6], warmup_epochs=4)
    rates = [rate_of(config.resolved(), epoch) for epoch in range(1, 9)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.01, 0.01, 0.01, 1e-3, 1e-3])


def test_settings_of_the_binary_recipe_are_another_track() -> None:
    for change in ({"schedule": "cosine"}, {"warmup_epochs": 5}, {"normalisation": "imagenet"}):
        config = TrainConfig(model="wrn_16_2", data="cifar100", **change)
        assert config.protocol() == "custom"
        assert config.identity() != TrainConfig(model="wrn_16_2", data="cifar100").identity()
    # Records from before these settings existed do not mention them.
    before = TrainConfig(model="wrn_16_2", data="cifar100").identity()
    assert not before.keys() & {"schedule", "warmup_epochs", "normalisation"}


def test_identity_leaves_out_where_a_run_executes() -> None:
    here = TrainConfig(model="resnet8", out="a", device="cpu", data_root="x")
    there = TrainConfig(model="resnet8", out="b", device="cuda", resume=True, data_root="y")
    assert here.identity() == there.identity()
    assert here.identity() != TrainConfig(model="resnet8", seed=1).identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"milestones": [5, 3]}, "milestones must increase"),
        ({"momentum": -1.0}, "momentum must be at least 0 and below 1"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"resume": True, "out": ""}, "resume needs out"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"lr_decay": -3.0}, "lr_decay must be between 0 and 1"),
        ({"image_size": 4}, "image_size must be at least 8"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
        ({"workers": -1}, "workers must not be negative"),
        ({"augment": "mixup"}, "augment must be 'auto' or 'none' or 'crop'"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum"),
        ({"schedule": "cosine", "milestones": [3]}, "the cosine schedule has no milestones"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs must be between 0 and epochs - 1, got 5 of 5"),
        ({"warmup_epochs": -1}, "warmup_epochs must be between 0"),
        ({"normalisation": "none"}, "normalisation must be 'dataset' or 'imagenet'"),
        ({"precision": "fp16"}, "precision must be 'fp32' or 'tf32' or 'bf16', got 'fp16'"),
        ({"epochs": "3"}, "epochs must be a whole number, got '3'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number or none"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(model="resnet8", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ce_weight": -1.0}, "ce_weight must not be negative"), ({"fill_table": True}, "needs teacher_table")],
)
def test_wrong_settings_of_distillation(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistillConfig(student="resnet8", **settings)


def test_summary_of_three_runs() -> None:
    summary = summarize([1.0, 2.0, 3.0])
    assert (summary.n, summary.mean, summary.std) == (3, 2.0, 1.0)
    # t quantile 0.975 with 2 degrees of freedom is 4.302652...
    assert summary.half_width == pytest.approx(4.3026527 / 3**0.5)
    assert paired_difference([2.0, 3.0, 5.0], [1.0, 1.0, 1.0]).mean == pytest.approx(7 / 3)
    with pytest.raises(ValueError, match="nothing"):
        summarize([])

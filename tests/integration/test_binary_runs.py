"""Runs of binary students: schedules, resuming, normalisation, and how names become weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import itrd
from itrd.api import evaluate
from itrd.bench.cells import cells_of, config_of
from itrd.bench.tracks import load_track
from itrd.data import load_dataset
from itrd.data.device import DeviceImages
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.log import Quiet
from itrd.engine.networks import load_network
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.table import table_key
from itrd.engine.trainer import Interrupted
from itrd.errors import CheckpointError, DataError, UserError
from itrd.models.binary.layers import BinaryConv2d, tau_at

SMALL: dict[str, Any] = {"data": "digits", "train_subset": 24, "test_subset": 10, "batch_size": 8}
RECIPE: dict[str, Any] = {"schedule": "cosine", "warmup_epochs": 1, "normalisation": "imagenet"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    settings = {**SMALL, **RECIPE, "epochs": 2, "tensorboard": False, "progress": False}
    with prepare_train(TrainConfig(model="resnet8", out=str(folder), **settings)) as trainer:
        trainer.fit()
    return folder


def student(teacher: Path, out: Path, *, resume: bool = False) -> Any:
    settings = {**SMALL, **RECIPE, "epochs": 3, "tensorboard": False, "progress": False}
    return prepare_distill(
        DistillConfig(
            teacher=str(teacher),
            student="resnet20_1w1a",
            method="itrd",
            out=str(out),
            resume=resume,
            **settings,
        )
    )


def taus(net: nn.Module) -> set[float]:
    return {float(m.tau) for m in net.modules() if isinstance(m, BinaryConv2d)}


def test_quantile_and_rate_follow_the_epochs_and_a_resumed_run_ends_the_same(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[float], float]] = []
    at_work: list[Any] = []
    stop_at: list[int] = []

    def step(display: Quiet, epoch: int, images: int) -> None:
        trainer = at_work[-1]
        seen.append((epoch, taus(trainer.task.student), trainer.optimizer.param_groups[0]["lr"]))
        if len(seen) in stop_at:
            trainer.request_stop()

    monkeypatch.setattr(Quiet, "step", step)
    with student(teacher, tmp_path / "whole") as trainer:
        at_work.append(trainer)
        whole = trainer.fit()
    assert [epoch for epoch, _, _ in seen] == [1] * 3 + [2] * 3 + [3] * 3
    for epoch, found, rate in seen:
        assert [*found] == [pytest.approx(tau_at(epoch - 1, 3), abs=1e-6)]  # all eighteen alike
        assert rate == pytest.approx({1: 0.05, 2: 0.0375, 3: 0.0125}[epoch])
    first = list(seen)

    seen.clear()
    stop_at.append(5)  # in the middle of the second epoch
    with student(teacher, tmp_path / "parts") as trainer:
        at_work.append(trainer)
        with pytest.raises(Interrupted):
            trainer.fit()
    with student(teacher, tmp_path / "parts", resume=True) as trainer:
        at_work.append(trainer)
        parts = trainer.fit()
    assert seen == first
    for key, value in whole.student.state_dict().items():
        assert torch.equal(value, parts.student.state_dict()[key]), key


def test_the_file_says_how_images_were_normalised(teacher: Path, tmp_path: Path) -> None:
    network = load_network(str(teacher))
    assert network.normalisation == "imagenet"
    with pytest.raises(UserError, match="add --normalisation imagenet"):
        itrd.distill(str(teacher), "resnet20_1w1a", epochs=1, **SMALL)
    images = load_dataset("digits").subset(test=10)
    theirs = evaluate(network.net, images, normalisation="imagenet")
    assert theirs == evaluate(network.net, images.normalised("imagenet"))
    assert theirs["loss"] != evaluate(network.net, images)["loss"]


def test_normalised_datasets() -> None:
    digits = load_dataset("digits")
    ours = digits.normalised("imagenet")
    assert (ours.mean, ours.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert ours.fingerprint == digits.fingerprint
    assert digits.normalised("dataset") is digits
    assert ours.normalised("imagenet") is ours
    with pytest.raises(DataError, match="cannot have the normalisation dataset"):
        ours.normalised("dataset")
    with pytest.raises(DataError, match="cannot have the normalisation none"):
        digits.normalised("none")


def test_a_name_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="train it with `itrd train --model resnet18_cifar`") as error:
        load_network("resnet18_cifar")
    assert "fetch the published ones" not in str(error.value)


def test_only_modules_with_a_schedule_are_told(tmp_path: Path) -> None:
    """A student of one's own may have such modules, too."""

    class Scheduled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * 32 * 32, 10)
            self.told: list[tuple[int, int]] = []

        def start_epoch(self, epoch: int, epochs: int) -> None:
            self.told.append((epoch, epochs))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    net = Scheduled()
    itrd.train(net, epochs=2, **SMALL)
    assert net.told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", ["binary", "binary-short"])
def test_tracks(name: str) -> None:
    track = load_track(name)
    configs = [config_of(track, cell).resolved() for cell in cells_of(track)]
    assert all((c.data, c.normalisation, c.schedule) == ("cifar10", "imagenet", "cosine") for c in configs)
    assert {c.protocol() for c in configs} == {"custom"}
    if name == "binary":
        students = [c for c in configs if c.trained_model.endswith("_1w1a")]
        assert {c.trained_model for c in students} == {"resnet18_1w1a", "resnet20_1w1a", "vgg_small_1w1a"}
        assert {
            (
                c.epochs,
                c.batch_size,
                c.learning_rate,
                c.warmup_epochs,
                c.momentum,
                c.weight_decay,
                c.precision,
            )
            for c in students
        } == {(600, 256, 0.1, 5, 0.9, 5e-4, "fp32")}
        assert {c.teacher for c in students if isinstance(c, DistillConfig)} == {"resnet18_cifar"}


def test_the_table_of_teacher_outputs_is_one_of_a_normalisation() -> None:
    net, digits = itrd.create_model("resnet8", 10), load_dataset("digits").subset(10, 10)
    keys = []
    for data in (digits, digits.normalised("imagenet")):
        images = DeviceImages(data.train, data.mean, data.std, padding=4, flip=False, device="cpu")
        keys.append(table_key(net, data, images, "fp32", 8))
    assert {key for key in keys[0] if keys[0][key] != keys[1][key]} == {"mean", "std"}

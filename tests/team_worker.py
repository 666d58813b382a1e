"""What the processes of the tests of distributed runs do; the first of one process computes the reference."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itrd.cli import main
from itrd.data import load_dataset
from itrd.data.datasets import ImageDataset
from itrd.engine import trainer as engine
from itrd.engine.config import DistillConfig
from itrd.engine.log import Quiet
from itrd.engine.networks import TrainedNetwork
from itrd.engine.run import prepare, prepare_distill
from itrd.engine.step import Stepper
from itrd.engine.task import StepOutput
from itrd.engine.trainer import Interrupted, Trainer
from itrd.errors import PeerError, TrainingError, UserError
from itrd.methods import create_objective
from itrd.models.base import FeatureNet

LOSSES = {
    "none": "none",
    "kd": "kd",
    "attention": "attention",
    "itrd": "itrd",
    "similarity": "0.3*similarity",
    "rkd": "0.01*rkd",
    "pkt": "10*pkt",
    "correlation": "correlation(feat_dim=5)",
    "dist": "dist",
    "crd": "crd(feat_dim=6, K=8)",
    "wcord": "wcord(feat_dim=6, K=8)",
    "kd and crd": "kd + 0.8*crd(feat_dim=6, K=8, mode='relax')",
    "fsp": "fsp(init_epochs=1)",
}
# 30 images in batches of 9 end with one of 3, which a single process of two takes; in batches of 25 with one of 5.
LAYOUTS: dict[str, dict[str, int]] = {
    "9": {"batch_size": 9},
    "25": {"batch_size": 25},
    "9 in 2": {"batch_size": 9, "accumulate": 2},
}


class Tiny(FeatureNet):
    """Two convolutions without batch norm, in double precision."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = 10
        self.stem = nn.Conv2d(3, 4, 3, stride=4)
        self.body = nn.Conv2d(4, width, 3, stride=2)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, 10)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        stem = self.stem(images.double()).tanh()
        deep = self.body(stem).tanh()
        return stem, (stem, deep), self.drop(deep.mean(dim=(2, 3)))

    def classify(self, embedding: Tensor) -> Tensor:
        return self.fc(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.stem, self.body])


def digits() -> ImageDataset:
    return load_dataset("digits").subset(30, 20)


@contextmanager
def prepared(
    loss: str, data: ImageDataset, net: nn.Module | None = None, **settings: Any
) -> Iterator[Trainer]:
    """A run of a tiny student, in double precision."""
    torch.manual_seed(0)
    student, teacher = net or Tiny(6), Tiny(6 if "fsp" in loss else 8)
    network = TrainedNetwork(teacher.eval(), "tiny", 10, "given", None, data.name)
    config = DistillConfig(
        teacher="tiny",
        student="tiny",
        data=data.name,
        **{
            "method": loss,
            "epochs": 2,
            "out": "",
            "progress": False,
            "tensorboard": False,
            "device": "cpu",
            **settings,
        },
    )
    objective = create_objective(loss, config.ce_weight)
    with prepare_distill(config, teacher=network, student=student, data=data, objective=objective) as trainer:
        yield trainer


def outcome(loss: str, data: ImageDataset, **settings: Any) -> dict[str, Any]:
    """Everything that a run computes: losses, gradients of every step, weights and memories at its end."""
    gradients: list[Tensor] = []
    made = engine.make_optimizer

    def watched(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = made(*arguments)

        def look(*_: Any) -> None:
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            gradients.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))

        optimizer.register_step_pre_hook(look)
        return optimizer

    with prepared(loss, data, **settings) as trainer, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "make_optimizer", watched)
        trainer.fit()
    epochs = [*trainer.first_stages, *trainer.history]
    return {
        "losses": [{**epoch.train, **epoch.test, **epoch.ema} for epoch in epochs],
        "gradients": gradients,
        "state": trainer.task.state_dict(),
    }


def outcomes() -> dict[tuple[str, str], dict[str, Any]]:
    data = digits()
    return {
        (name, layout): outcome(loss, data, ema=0.8, **settings)
        for name, loss in LOSSES.items()
        for layout, settings in LAYOUTS.items()
    }


def stopped(folder: Path, command: list[str]) -> dict[str, Any]:
    """One process gets a signal in the second epoch; the run is resumed and ends as it would have."""
    statuses = [main([*command, "--out", str(folder / "whole")])]
    steps = [0]

    def step(display: Quiet, epoch: int, images: int) -> None:
        steps[0] += 1
        if steps[0] == 6 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quiet, "step", step)
        statuses.append(main([*command, "--out", str(folder / "parts")]))
    statuses.append(main([*command, "--out", str(folder / "parts"), "--resume"]))
    return {"statuses": statuses, "steps": steps[0]}


def spoiled(data: ImageDataset, on_nonfinite: str) -> dict[str, Any]:
    """One process has a loss that is not finite in the second step."""
    original, calls = Stepper.forward, [0]

    def forward(*arguments: Any) -> StepOutput:
        calls[0] += 1
        output = original(*arguments)
        if calls[0] == 2 and os.environ["RANK"] == "1":
            output.terms["ce"] = output.terms["ce"] * math.nan
        return output

    settings = {"batch_size": 9, "on_nonfinite": on_nonfinite}
    with prepared("kd", data, **settings) as trainer, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "forward", forward)
        try:
            trainer.fit()
        except TrainingError as error:
            return {"error": str(error)}
    return {"skipped": [epoch.skipped for epoch in trainer.history], "state": trainer.task.state_dict()}


def error_of(function: Callable[[], Any]) -> str:
    try:
        function()
    except (UserError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def random_networks(data: ImageDataset) -> dict[str, Any]:
    """Dropout differs between processes; what a method draws does not."""
    found = outcome("crd(feat_dim=6, K=8)", data, net=Tiny(6, dropout=0.5), batch_size=9)
    return {"state": found["state"], "generator": torch.get_rng_state()}


def requested(data: ImageDataset) -> int:
    """One process asks for a stop; all stop after the same step."""
    steps = [0]
    with prepared("kd", data, batch_size=9) as trainer, pytest.MonkeyPatch.context() as patch:

        def step(*_: Any) -> None:
            steps[0] += 1
            if steps[0] == 3 and os.environ["RANK"] == "0":
                trainer.request_stop()

        patch.setattr(Quiet, "step", step)
        with pytest.raises(Interrupted):
            trainer.fit()
    return steps[0]


def work(rank: int, size: int, port: int, folder: Path, command: list[str]) -> None:
    """Do everything as one of several processes, and write down what came out."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    found: dict[str, Any] = {"stopped": stopped(folder, command)}
    torch.set_default_dtype(torch.float64)
    data = digits()
    found["outcomes"] = outcomes()
    found["random"] = random_networks(data)
    found["requested"] = requested(data)
    found["nonfinite"] = {way: spoiled(data, way) for way in ("stop", "skip")}
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "note").touch()

    def taken() -> None:
        with prepared("kd", data, out=str(folder / "taken")):
            pass

    found["taken"] = error_of(taken)
    absent = DistillConfig(teacher=str(folder / "absent"), student="resnet8", data="digits", out="")

    def unreadable() -> None:
        with prepare(absent):
            pass

    found["absent"] = error_of(unreadable)
    torch.save(found, folder / f"{rank}.pt")

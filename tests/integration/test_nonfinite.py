"""A loss or gradient that is not finite: named and stopped, or skipped and counted; never learned from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from itrd.cli import main
from itrd.data.source import Drawn
from itrd.engine import trainer as engine
from itrd.engine.checkpoint import load_state
from itrd.engine.config import TrainConfig
from itrd.engine.nonfinite import StepGuard
from itrd.engine.run import prepare_train
from itrd.engine.step import Stepper
from itrd.engine.task import DistillTask, StepOutput
from itrd.engine.trainer import Interrupted, Trainer
from itrd.errors import TrainingError
from itrd.methods.base import Batch


class Break:
    """Spoils the steps of the given numbers, counted from 1 over the whole run."""

    def __init__(self, patch: pytest.MonkeyPatch, steps: set[int], how: str) -> None:
        self.steps, self.how, self.count = steps, how, 0
        original = Stepper.forward

        def forward(stepper: Stepper, drawn: Drawn, batch: Batch, teacher: Any) -> StepOutput:
            self.count += 1
            if self.count not in self.steps:
                return original(stepper, drawn, batch, teacher)
            return self.spoiled(stepper, lambda: original(stepper, drawn, batch, teacher))

        patch.setattr(Stepper, "forward", forward)

    def spoiled(self, stepper: Stepper, forward: Any) -> StepOutput:
        if self.how == "layer":

            def nan(module: Any, inputs: Any, output: Tensor) -> Tensor:
                self.count -= self.count > max(self.steps)  # the diagnosis comes by once more
                return output * math.nan

            handle = stepper.guard.task.student.layer2[0].conv1.register_forward_hook(nan)
            if stepper.guard.skip:
                output = forward()
                handle.remove()
                return output
            return forward()
        output = forward()
        if self.how == "term":
            broken = torch.tensor(math.inf)
            return output._replace(
                loss=output.loss * broken, terms={**output.terms, "loss": broken, "ce": broken}
            )

        class Spoil(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return g * math.nan

        return output._replace(loss=Spoil.apply(output.loss))


@pytest.fixture
def settings(tmp_path: Path, tiny: dict[str, Any]) -> dict[str, Any]:
    """Four steps an epoch, two epochs."""
    return {**tiny, "model": "resnet8", "data": "digits", "progress": False, "out": str(tmp_path / "run")}


@pytest.fixture(params=["at once", "on the device"])
def immediate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of checking: a CPU's, and a GPU's run on the CPU."""
    at_once = request.param == "at once"
    original = StepGuard.__init__

    def init(self: StepGuard, task: DistillTask, *, skip: bool, immediate: bool) -> None:
        original(self, task, skip=skip, immediate=at_once)

    monkeypatch.setattr(StepGuard, "__init__", init)
    return at_once


def run(settings: dict[str, Any], **more: Any) -> Trainer:
    with prepare_train(TrainConfig(**settings, **more)) as trainer:
        trainer.fit()
    return trainer


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("term", "the loss is not finite (term ce)"),
        ("gradient", "the loss is finite, but not its gradient, first in the gradient of student.fc.bias"),
        ("layer", "the loss is not finite (term ce), first "),
    ],
)
def test_stop(how: str, words: str, immediate: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Break(patch, {6}, how)
        with pytest.raises(TrainingError) as caught:
            run(settings)
    text = str(caught.value)
    assert text.startswith(f"epoch 2, step 2: {words}")
    if how == "layer":
        assert ("at the output of student.layer2.0.conv1" in text) == immediate
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint.pt'}, at epoch 2, step 1" in text
    assert "--on_nonfinite skip" in text
    assert "\n" not in text
    whole = run({**settings, "out": str(tmp_path / "whole")})
    resumed = run(settings, resume=True)
    assert_equal(whole, resumed)


def assert_equal(a: Trainer, b: Trainer) -> None:
    for x, y in zip(a.task.state_dict().values(), b.task.state_dict().values(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("how", ["term", "gradient", "layer"])
def test_skip(how: str, immediate: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Break(patch, {1, 3, 6}, how)
        trainer = run(settings, on_nonfinite="skip")
    assert [epoch.skipped for epoch in trainer.history] == [2, 1]
    for value in (*trainer.task.state_dict().values(), *trainer.optimizer.state_dict()["state"][0].values()):
        assert value.isfinite().all()
    for epoch in trainer.history:
        assert all(math.isfinite(value) for value in epoch.train.values())
        assert epoch.images_per_second > 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["skipped_steps"] == 3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["skipped"] for line in lines] == [2, 1]


def test_both_ways_skip_to_the_same_bits(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    original = StepGuard.__init__
    for at_once in (True, False):

        def init(
            self: StepGuard, task: DistillTask, *, skip: bool, immediate: bool, at_once: bool = at_once
        ) -> None:
            original(self, task, skip=skip, immediate=at_once)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StepGuard, "__init__", init)
            Break(patch, {1, 3, 6}, "layer")
            ended.append(run({**settings, "out": ""}, on_nonfinite="skip"))
    assert_equal(*ended)
    assert ended[0].history[0].train == ended[1].history[0].train


def test_skipping_changes_nothing_where_all_is_finite(immediate: bool, settings: dict[str, Any]) -> None:
    a = run({**settings, "out": ""})
    b = run({**settings, "out": ""}, on_nonfinite="skip")
    assert_equal(a, b)
    assert [e.train for e in a.history] == [e.train for e in b.history]


def test_skipped_steps_survive_a_stop(immediate: bool, settings: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil = Break(patch, {2}, "term")
        with prepare_train(TrainConfig(**settings, on_nonfinite="skip")) as trainer:
            step = engine.Quiet.step
            patch.setattr(
                engine.Quiet, "step", lambda *a: (step(*a), spoil.count == 3 and trainer.request_stop())
            )
            with pytest.raises(Interrupted):
                trainer.fit()
    trainer = run(settings, on_nonfinite="skip", resume=True)
    assert [epoch.skipped for epoch in trainer.history] == [1, 0]


def test_a_run_of_bad_steps_alone_is_an_error(immediate: bool, settings: dict[str, Any]) -> None:
    """Divergence is reported, not skipped away."""
    with pytest.MonkeyPatch.context() as patch:
        Break(patch, set(range(100)), "term")
        with pytest.raises(TrainingError, match=r"not finite in the mean over epoch 1: .*ce"):
            run(settings, on_nonfinite="skip")


def test_a_spoiled_state_is_never_saved(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU the verdict is read late: asked to stop in between, the run fails and keeps its last good state."""
    original = StepGuard.__init__
    monkeypatch.setattr(
        StepGuard,
        "__init__",
        lambda self, task, *, skip, immediate: original(self, task, skip=skip, immediate=False),
    )
    spoil = Break(monkeypatch, {6}, "gradient")
    with prepare_train(TrainConfig(**settings)) as trainer:
        monkeypatch.setattr(engine.Quiet, "step", lambda *a: spoil.count == 6 and trainer.request_stop())
        with pytest.raises(TrainingError, match="epoch 2, step 2"):
            trainer.fit()
    state, _ = load_state(tmp_path / "run" / "checkpoint.pt")
    assert (state["position"]["epoch"], state["position"]["step"]) == (2, 0)


def test_the_command_line_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--train_subset", "60", "--test_subset", "40", "--batch_size", "16", "--epochs", "2"]
    command = [
        "train",
        "--model",
        "resnet8",
        "--data",
        "digits",
        *small,
        "--out",
        "run",
        "--progress",
        "false",
    ]
    command += ["--tensorboard", "false", "--learning_rate"]
    assert main([*command, "1e30"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("itrd: error: epoch 1, step 2: ")
    assert "there is no checkpoint yet" in error
    assert error.count("\n") == 1


def test_it_waits_for_the_device_only_now_and_then(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever reads a number out of a tensor is counted: between two looks nothing does."""
    monkeypatch.setattr("itrd.engine.nonfinite.READ_EVERY", 4)
    with prepare_train(TrainConfig(**{**settings, "out": ""})) as trainer:
        guard = StepGuard(trainer.task, skip=False, immediate=False)
        skipping = StepGuard(trainer.task, skip=True, immediate=False)
    trainer.task.train()
    optimizer = torch.optim.SGD(trainer.task.parameters(), lr=0.01, momentum=0.9)
    images = trainer.train_images
    indices = torch.arange(8)
    read: list[str] = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        original = getattr(Tensor, name)

        def counted(self: Tensor, *a: Any, name: str = name, original: Any = original) -> Any:
            read.append(name)
            return original(self, *a)

        monkeypatch.setattr(Tensor, name, counted)
    for number in range(8):
        for each in (guard, skipping):
            each.remember(optimizer)
            output = trainer.task(images.plain(indices), Batch(images.labels[indices], indices))
            optimizer.zero_grad()
            output.loss.backward()
            read.clear()
            each.update(output.terms, optimizer, lambda output=output: output)
            each.look(number)
            assert len(read) == (1 if each is guard and number % 4 == 3 else 0), read

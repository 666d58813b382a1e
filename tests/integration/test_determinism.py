"""Every generator is seeded, saved and restored; ``--deterministic`` switches everything on that torch has."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import itrd
from itrd.engine import trainer as engine
from itrd.engine.checkpoint import read_weights
from itrd.engine.config import TrainConfig
from itrd.engine.device import be_deterministic
from itrd.engine.run import prepare_train
from itrd.engine.state import generators, restore_generators, seed_generators
from itrd.engine.step import Stepper
from itrd.engine.task import StepOutput
from itrd.engine.trainer import Interrupted
from itrd.errors import UserError


@pytest.fixture
def _as_before() -> Iterator[None]:
    """The switches are the process's."""
    variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    if variable is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_seeds_and_states_of_all_generators() -> None:
    seed_generators(2**62 + 5)
    state = generators(torch.device("cpu"))
    first = drawn()
    assert drawn() != first
    restore_generators(state, torch.device("cpu"))
    assert drawn() == first
    seed_generators(2**62 + 5)
    assert drawn() == first
    seed_generators(6)
    assert drawn() != first


def test_calls_from_python_leave_the_generators_alone() -> None:
    seed_generators(1)
    undisturbed = [drawn() for _ in range(2)]
    seed_generators(1)
    small = {"epochs": 1, "train_subset": 16, "test_subset": 10}
    assert drawn() == undisturbed[0]
    itrd.train("resnet8", "digits", **small)
    with pytest.raises(UserError):
        itrd.distill("absent", "resnet8", "digits", **small)
    assert drawn() == undisturbed[1]


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("variable", [None, ":4096:8"])
@pytest.mark.parametrize("used", [False, True])
def test_a_gpu_that_was_used_before(
    variable: str | None, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS looks at its variable once, at the first matrix product."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", variable)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    if used and variable is None:
        with pytest.raises(UserError, match="comes too late for this process"):
            be_deterministic(torch.device("cuda"))
    else:
        be_deterministic(torch.device("cuda"))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("_as_before")
def test_from_python_the_variable_is_set_before_a_generator_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    there = []

    def watched(device: torch.device) -> Any:
        there.append("CUBLAS_WORKSPACE_CONFIG" in os.environ)
        return generators(device)

    monkeypatch.setattr(itrd.api, "generators", watched)
    with pytest.raises(UserError):
        itrd.distill("absent", "resnet8", "digits", deterministic=True)
    assert there == [True]


def noisy(patch: pytest.MonkeyPatch) -> None:
    """Make the loss depend on all three generators, as a method of somebody else's may."""
    original = Stepper.forward

    def forward(*arguments: Any) -> StepOutput:
        output = original(*arguments)
        noise = sum(drawn())
        return output._replace(loss=output.loss * noise, terms={**output.terms, "noise": torch.tensor(noise)})

    patch.setattr(Stepper, "forward", forward)


@pytest.mark.parametrize("steps", [2, 4, 6])
def test_a_method_may_draw_from_any_generator(
    steps: int, tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy(monkeypatch)
    settings = {**tiny, "model": "resnet8", "data": "digits", "progress": False}
    with prepare_train(TrainConfig(**settings, out="")) as trainer:
        whole = trainer.fit()
    out = str(tmp_path / "run")
    with prepare_train(TrainConfig(**settings, out=out)) as trainer, pytest.MonkeyPatch.context() as patch:
        left = iter(range(steps - 1, -1, -1))
        patch.setattr(engine.Quiet, "step", lambda *a: next(left) == 0 and trainer.request_stop())
        with pytest.raises(Interrupted):
            trainer.fit()
    for spoil in (random.random, np.random.rand, lambda: torch.rand(3)):
        spoil()
    with prepare_train(TrainConfig(**settings, out=out, resume=True)) as trainer:
        resumed = trainer.fit()
    for a, b in zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [e.train for e in whole.history] == [e.train for e in resumed.history]


@pytest.mark.usefixtures("_as_before")
def test_the_switches(tiny: dict[str, Any]) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits", "progress": False, "out": ""}
    with prepare_train(TrainConfig(**settings)):
        assert not torch.are_deterministic_algorithms_enabled()
    with prepare_train(TrainConfig(**settings, deterministic=True)) as trainer:
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert trainer.fit().record["deterministic"] is True


def test_a_run_leaves_the_switches_as_they_were(tiny: dict[str, Any]) -> None:
    def switches() -> list[bool]:
        cudnn = torch.backends.cudnn
        return [torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark]

    torch.backends.cudnn.benchmark = True
    before = switches()
    itrd.train("resnet8", "digits", **tiny, deterministic=True)
    assert switches() == before


@pytest.mark.parametrize("method", ["itrd", "crd(K=16, feat_dim=8)"])
def test_two_processes_end_with_the_same_bits(method: str, tmp_path: Path, teacher_folder: Path) -> None:
    small = ["--train_subset", "60", "--test_subset", "40", "--batch_size", "16", "--epochs", "1"]
    found = []
    for name in ("a", "b"):
        out = tmp_path / name
        command = [
            "distill",
            "--teacher",
            str(teacher_folder),
            "--student",
            "resnet8",
            "--method",
            method,
            *small,
        ]
        command += ["--deterministic", "--progress", "false", "--tensorboard", "false", "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": name.encode().hex()[:1]}
        subprocess.run([sys.executable, "-m", "itrd", *command], check=True, env=environment)
        record = json.loads((out / "result.json").read_text())
        found.append(
            (read_weights(out / "last.safetensors")[0], record["last"]["train"], record["last"]["test"])
        )
    (weights, *epochs), (others, *other_epochs) = found
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert epochs == other_epochs


@pytest.mark.usefixtures("_as_before")
def test_what_cannot_be_deterministic_is_an_error(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but ..."
        )

    monkeypatch.setattr(Stepper, "forward", refuse)
    settings = {**tiny, "model": "resnet8", "data": "digits", "progress": False, "out": ""}
    with (
        prepare_train(TrainConfig(**settings, deterministic=True)) as trainer,
        pytest.raises(UserError, match="--deterministic is not possible here: adaptive_avg_pool2d_backward"),
    ):
        trainer.fit()

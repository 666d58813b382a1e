"""Micro-batches, moving average, clipping, label smoothing, compiled networks; and who needs the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import itrd
from itrd.data.datasets import ImageDataset
from itrd.engine import compiled
from itrd.engine.average import MovingAverage
from itrd.engine.checkpoint import read_weights
from itrd.engine.config import TrainConfig
from itrd.engine.interrupt import Interrupted
from itrd.engine.log import Quiet
from itrd.engine.optimizer import make_optimizer, set_rate
from itrd.engine.run import prepare_train
from itrd.errors import UserError
from itrd.methods import METHODS, Batch, create_objective
from itrd.methods.base import Setup
from itrd.models.base import Outputs
from itrd.models.observe import observer
from method_examples import SAMPLES, random_outputs, ready
from team_worker import digits, outcome, prepared

MEMORIES = {"crd": {"K": 8}, "wcord": {"K": 8}}


@pytest.fixture
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return digits()


def value(name: str, student: Outputs, teacher: Outputs, rows: slice) -> float:
    """A method's loss on some samples; batch norms in eval mode, so that only the loss can relate samples."""
    method = ready(name, student, teacher, **MEMORIES.get(name, {})).eval()
    batch = Batch(torch.arange(SAMPLES)[rows] % 5, torch.arange(SAMPLES)[rows])
    torch.manual_seed(1)
    first = method.first_stage() is not None
    part = [outputs.map(lambda x: x[rows]) for outputs in (student, teacher)]
    terms = method(*part, batch, first_stage=first)
    loss = torch.stack(list(terms.values())).sum() if first else method.loss(terms)
    return float(loss.detach())


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"none"}))
def test_who_says_that_it_relates_no_samples_is_a_mean_over_them(name: str) -> None:
    student, teacher = random_outputs(1, batch=7), random_outputs(2, batch=7)
    whole = value(name, student, teacher, slice(0, 7))
    parts = 4 / 7 * value(name, student, teacher, slice(0, 4)) + 3 / 7 * value(
        name, student, teacher, slice(4, 7)
    )
    relates = ready(name, student, teacher, **MEMORIES.get(name, {})).relates_samples
    assert (parts != pytest.approx(whole, rel=1e-9)) == relates


def test_logit_standardisation_relates_samples_where_its_base_does() -> None:
    assert not itrd.create_method("logit_std").relates_samples
    assert itrd.create_method("logit_std", base="dist").relates_samples


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("loss", ["kd", "attention"])
def test_micro_batches_add_up_to_the_batch(loss: str, data: ImageDataset) -> None:
    whole = outcome(loss, data, batch_size=8)
    parts = outcome(loss, data, batch_size=8, accumulate=3)
    for a, b in zip(whole["gradients"], parts["gradients"], strict=True):
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()
    for a, b in zip(whole["losses"], parts["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-12)


@pytest.mark.usefixtures("double")
def test_a_method_that_relates_samples_sees_micro_batches(data: ImageDataset) -> None:
    """The documented difference."""
    whole = outcome("itrd", data, batch_size=8, epochs=1)
    parts = outcome("itrd", data, batch_size=8, epochs=1, accumulate=2)
    assert parts["losses"][0]["itrd.corr"] != pytest.approx(whole["losses"][0]["itrd.corr"], rel=1e-3)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_the_average_follows_its_formula(
    on_nonfinite: str, data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decay, steps = 0.7, []
    out = str(tmp_path / "run")
    with prepared("kd", data, batch_size=8, ema=decay, on_nonfinite=on_nonfinite, out=out) as trainer:
        student = trainer.task.student
        expected = [p.detach().clone() for p in student.parameters()]

        def step(*_: Any) -> None:
            steps.append(1)
            for i, p in enumerate(student.parameters()):
                expected[i] = decay * expected[i] + (1 - decay) * p.detach()

        monkeypatch.setattr(Quiet, "step", step)
        result = trainer.fit()
    assert trainer.average is not None
    for ours, value in zip(trainer.average.net.parameters(), expected, strict=True):
        assert (ours - value).abs().max() <= 1e-12
        assert not ours.requires_grad
    assert len(steps) == 8
    assert {"top1", "top5", "loss"} == set(result.last.ema)
    assert result.last.ema != result.last.test
    weights, metadata = read_weights(tmp_path / "run" / "ema.safetensors")
    assert torch.equal(weights["fc.weight"], trainer.average.net.fc.weight)
    assert metadata["top1"] == f"{result.last.ema['top1']:.4f}"


def test_a_step_that_was_not_taken_moves_no_average() -> None:
    net = nn.BatchNorm1d(2)
    average = MovingAverage(net, 0.5)
    with torch.no_grad():
        net.weight += 1
        net.num_batches_tracked += 3
    average.update(torch.tensor(False))
    assert torch.equal(average.net.weight, torch.ones(2))
    average.update(torch.tensor(True))
    assert torch.equal(average.net.weight, torch.full((2,), 1.5))
    assert average.net.num_batches_tracked == 3


def test_the_average_resumes(tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits", "ema": 0.9, "progress": False}

    def run(**more: Any) -> dict[str, float]:
        with prepare_train(TrainConfig(**settings, **more)) as trainer:
            return trainer.fit().last.ema

    whole = run(out="")
    out = str(tmp_path / "run")
    with monkeypatch.context() as patch, prepare_train(TrainConfig(**settings, out=out)) as trainer:
        steps = iter([False] * 5 + [True])
        patch.setattr(Quiet, "step", lambda *_: next(steps) and trainer.request_stop())
        with pytest.raises(Interrupted):
            trainer.fit()
    assert run(out=out, resume=True) == whole


def test_gradients_are_scaled_down_to_a_norm() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    config = TrainConfig(model="resnet8", max_grad_norm=1.0, momentum=0.0, weight_decay=0.0)
    optimizer = make_optimizer([weight], config, torch.device("cpu"))
    set_rate(optimizer, 1.0)
    for gradient, moved in ((torch.tensor([30.0, 40.0]), [0.6, 0.8]), (torch.tensor([0.3, 0.4]), [0.3, 0.4])):
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        assert (before - weight.detach()).tolist() == pytest.approx(moved, rel=1e-5)


def test_a_loss_that_is_always_zero_is_refused() -> None:
    teacher = itrd.create_model("resnet8", 10)
    with pytest.raises(UserError, match=r"the loss 0\*ce \+ 0\*kd\(T=4\.0\) is always 0"):
        itrd.distill(teacher, "resnet8", "digits", "0*ce + 0*kd", epochs=1)


def test_label_smoothing_is_said_once() -> None:
    objective = create_objective("kd")
    objective.label_smoothing = 0.3
    teacher = itrd.create_model("resnet8", 10)
    small = {"train_subset": 20, "test_subset": 10, "epochs": 1}
    for again in (objective, create_objective(objective, 0.5)):
        with pytest.raises(
            UserError, match=r"smooths labels by 0\.3 and the settings by 0\.0; give label_smo"
        ):
            itrd.distill(teacher, "resnet8", "digits", again, **small)
    result = itrd.distill(teacher, "resnet8", "digits", objective, **small, label_smoothing=0.3)
    assert result.record["settings"]["label_smoothing"] == objective.label_smoothing == 0.3


@pytest.mark.usefixtures("double")
def test_label_smoothing_is_in_the_cross_entropy(data: ImageDataset) -> None:
    with prepared("kd", data, batch_size=8, label_smoothing=0.1) as trainer:
        objective = trainer.task.objective
    student, teacher = random_outputs(1), random_outputs(2)
    labels = torch.tensor([0, 1, 2, 3])
    _, terms = objective(student, teacher, Batch(labels, labels))
    log_p = student.logits.log_softmax(dim=1)
    smooth = 0.9 * F.one_hot(labels, log_p.shape[1]) + 0.1 / log_p.shape[1]
    assert float(terms["ce"]) == pytest.approx(float(-(smooth * log_p).sum(dim=1).mean()), rel=1e-12)


@pytest.mark.parametrize(("method", "precision"), [*((m, "fp32") for m in METHODS), ("itrd", "bf16")])
def test_what_is_compiled_computes_the_same(
    method: str, precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Traced as for the compiler, and then run by torch: the compiler itself takes a minute."""
    compile_ = torch.compile
    settings = {"epochs": 1, "batch_size": 16, "train_subset": 40, "test_subset": 20, "precision": precision}
    torch.manual_seed(0)
    teacher = itrd.create_model("resnet8", 10)
    expected = itrd.distill(teacher, "resnet8", "digits", method, **settings)
    calls = []

    def traced(function: Any, options: Any) -> Any:
        calls.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(compiled.torch, "compile", traced)
    torch.compiler.reset()  # of a function that was compiled too often, nothing is compiled any more
    found = itrd.distill(teacher, "resnet8", "digits", method, **settings, compile=True)
    assert len(calls) == 3  # student, teacher, loss
    assert found.last.train == pytest.approx(expected.last.train, rel=1e-5)
    assert "cannot be compiled" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_losses_that_the_compiler_translated_compute_the_same(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values and gradients, with the compiler's kernels; in float64, as some values are small differences."""
    torch.manual_seed(0)
    teacher, student = (
        itrd.create_model("resnet20", 10).eval().double(),
        itrd.create_model("resnet8", 10).double(),
    )
    objective = create_objective(method)
    preact = objective.preact("reference")
    images, labels = torch.rand(32, 3, 32, 32, dtype=torch.float64), torch.arange(32) % 10
    with torch.no_grad():
        seen = observer(student)(images, preact[0]), observer(teacher)(images, preact[1])
    objective.setup(Setup(*seen, student, teacher, 10, labels.repeat(10)))
    objective.double()
    found = []
    torch.compiler.reset()
    for compute in (copy.deepcopy(objective), compiled.Compiled(copy.deepcopy(objective), "loss")):
        torch.manual_seed(1)
        for _ in range(2):  # the first call is not of what was compiled
            outputs = seen[0].map(lambda value: value.clone().requires_grad_())
            loss, terms = compute(outputs, seen[1], Batch(labels, torch.arange(32)))
            loss.backward()
        values = [loss, *terms.values(), outputs.logits.grad, *(value.grad for value in outputs.maps)]
        found.append([value for value in values if value is not None])
    assert "cannot be compiled" not in capsys.readouterr().err
    for plain, translated in zip(*found, strict=True):
        atol = 1e-5 * float(plain.detach().abs().max())
        torch.testing.assert_close(translated, plain, rtol=1e-4, atol=atol)


@pytest.mark.slow
def test_what_is_compiled_draws_the_random_numbers_of_torch(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    torch.compiler.reset()
    compute = compiled.Compiled(net, "network")
    x = torch.randn(5, 8)
    compute(x)
    found = []
    for each in (net, compute):
        torch.manual_seed(3)
        found.append((each(x), each(x), torch.rand(1)))
    torch.testing.assert_close(found[1], found[0])
    assert "cannot be compiled" not in capsys.readouterr().err


def test_what_cannot_be_compiled_is_said_once_and_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: ImageDataset
) -> None:
    def refuse(function: Any, options: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no compiler\nand a long story")

        return run

    settings = {"epochs": 1, "batch_size": 8, "train_subset": 30, "test_subset": 20}
    teacher, student = (itrd.create_model("resnet8", 10) for _ in range(2))
    start = {name: value.clone() for name, value in student.state_dict().items()}
    expected = itrd.distill(teacher, student, "digits", "kd", **settings).record["curve"][0]["train"]
    monkeypatch.setattr(compiled.torch, "compile", refuse)
    student.load_state_dict(start)
    found = itrd.distill(teacher, student, "digits", "kd", **settings, compile=True).record["curve"][0][
        "train"
    ]
    assert found == expected
    lines = [line for line in capsys.readouterr().err.splitlines() if "cannot be compiled" in line]
    assert lines == [
        f"the {who} cannot be compiled (no compiler); it runs as it is"
        for who in ("teacher", "student", "loss")
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"accumulate": 33}, "accumulate 33 leaves fewer than 2 images of a batch of 64"),
        ({"ema": 1.0}, "ema, the decay of the average, must be between 0 and 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(model="resnet8", **settings)


def test_younger_settings_are_not_a_part_of_older_runs() -> None:
    names = {"accumulate", "ema", "label_smoothing", "max_grad_norm", "sync_batch_norm", "compile"}
    assert not names & set(TrainConfig(model="resnet8").identity())
    assert TrainConfig(model="resnet8", ema=0.9).identity()["ema"] == 0.9

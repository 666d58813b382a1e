"""The step that is recorded and replayed: it waits for nothing, and what it reads lives in fixed places.

A recording is imitated here: it keeps the function and calls it again, which shows every value that the host
would have had to pass from step to step. What only a GPU can show is marked ``gpu``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import itrd
from itrd.engine import trainer as engine
from itrd.engine.capture import WARM_UP, CapturedStepper, _numbers, record_cuda
from itrd.engine.config import DistillConfig
from itrd.engine.networks import TrainedNetwork
from itrd.engine.nonfinite import StepGuard
from itrd.engine.run import prepare_distill
from itrd.engine.step import Stepper
from itrd.methods import METHODS, create_method, method_class
from itrd.methods.base import Method

# Their steps cannot be recorded; see their docstrings.
WAITING = {name for name in METHODS if method_class(name).waits}


class NoHost(TorchDispatchMode):
    """Refuses whatever makes the host wait for a device, or gives a tensor whose shape depends on its values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if name.startswith(self.FORBIDDEN):
            raise AssertionError(f"{name} makes the host wait")
        if name.startswith(("index.", "index_put")) and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]
        ):
            raise AssertionError(f"{name} by a mask makes the host wait")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge steps as on a GPU."""
    original = StepGuard.__init__

    def init(self: StepGuard, task: Any, *, skip: bool, immediate: bool) -> None:
        original(self, task, skip=skip, immediate=False)

    monkeypatch.setattr(StepGuard, "__init__", init)


def config(method: str = "itrd", **settings: Any) -> DistillConfig:
    two_stages = "init_epochs" in create_method(method).settings()
    notation = f"{method}(init_epochs=2)" if two_stages else method
    return DistillConfig(
        teacher="",
        student="resnet8",
        data="digits",
        method=notation,
        **{
            "train_subset": 90,
            "test_subset": 20,
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 0.01,
            "out": "",
            "progress": False,
            "tensorboard": False,
            **settings,
        },
    )


@contextmanager
def prepared(settings: DistillConfig) -> Iterator[engine.Trainer]:
    torch.manual_seed(3)
    teacher = itrd.create_model("resnet20", num_classes=10)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees now, so that maps have a sensible scale
    teacher.train()(torch.randn(32, 3, 32, 32))
    network = TrainedNetwork(teacher.eval(), "resnet20", 10, "given", None, "digits")
    with prepare_distill(settings, teacher=network) as trainer:
        yield trainer


def trained(settings: DistillConfig) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    with prepared(settings) as trainer:
        result = trainer.fit()
        epochs = [*trainer.first_stages, *result.history]
        return [
            {
                f"{kind} {name}": value
                for kind in ("test", "ema", "train")
                for name, value in vars(e)[kind].items()
            }
            for e in epochs
        ], trainer.task.state_dict()


def repeat(body: Callable[[], None]) -> Callable[[], None]:
    """Imitate a recording, which executes nothing while it is made."""
    return body


def capture_with(monkeypatch: pytest.MonkeyPatch, record: Any) -> list[CapturedStepper]:
    """Let runs record their steps as on a GPU, but with ``record``; return the steppers that they make."""
    monkeypatch.setattr(engine.Trainer, "_recorder", lambda self: record)
    return noted(monkeypatch)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[CapturedStepper]:
    """The captured steppers that runs make."""
    made: list[CapturedStepper] = []
    original = CapturedStepper.__init__

    def init(self: CapturedStepper, *arguments: Any, **settings: Any) -> None:
        original(self, *arguments, **settings)
        made.append(self)

    monkeypatch.setattr(CapturedStepper, "__init__", init)
    return made


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_replayed_step_is_the_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same losses, same accuracies, same weights, with a last batch that is smaller."""
    expected, weights = trained(config(method))
    made = capture_with(monkeypatch, repeat)
    found, own = trained(config(method))
    assert found == expected
    assert all(torch.equal(weights[key], own[key]) for key in weights)
    # 90 images make 5 full batches of 16 and a smaller one, for 3 epochs (2 in a first stage).
    assert made[-1].replayed == (0 if method in WAITING else 5 * 3 - WARM_UP)


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize(
    "settings",
    [{"on_nonfinite": "skip"}, {"teacher_table": "table"}, {"ema": 0.9}, {"ema": 0.9, "accumulate": 2}],
)
def test_other_kinds_of_steps_are_replayed_too(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    expected, weights = trained(config(**settings))
    made = capture_with(monkeypatch, repeat)
    found, own = trained(config(**settings))
    assert found == expected
    assert all(torch.equal(weights[key], own[key]) for key in weights)
    assert made[-1].replayed


@pytest.mark.usefixtures("deferred")
def test_a_resumed_run_replays_from_where_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, weights = trained(config())
    capture_with(monkeypatch, repeat)
    settings = {"out": str(tmp_path / "run")}
    with prepared(config(**settings)) as trainer:
        steps: list[int] = []

        def stop(*arguments: Any) -> None:
            steps.append(1)
            if len(steps) == 9:  # in the second epoch
                trainer.request_stop()

        with monkeypatch.context() as patch:
            patch.setattr(engine.Quiet, "step", stop)
            with pytest.raises(engine.Interrupted):
                trainer.fit()
    found, own = trained(config(**settings, resume=True))
    assert found == expected
    assert all(torch.equal(weights[key], own[key]) for key in weights)


def test_on_a_gpu_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the trainer's own choice of a stepper, for every setting that it passes on."""
    with prepared(config(ema=0.9, accumulate=2)) as trainer:
        optimizer = engine.make_optimizer(trainer._stages[-1].begin(), trainer.config, trainer.device)
        assert type(trainer._stepper(trainer._stages[-1], optimizer)) is Stepper
        monkeypatch.setattr(trainer, "device", torch.device("cuda"))
        stepper = trainer._stepper(trainer._stages[-1], optimizer)
        assert isinstance(stepper, CapturedStepper)
        assert stepper._record is record_cuda
        assert (stepper.accumulate, stepper.average) == (2, trainer.average)


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_step_never_waits_and_stays_on_its_device(method: str, skip: bool) -> None:
    settings = config(method, on_nonfinite="skip" if skip else "stop")
    with prepared(settings) as trainer:
        for stage in trainer._stages:
            optimizer = engine.make_optimizer(stage.begin(), settings, trainer.device)
            stepper = trainer._stepper(stage, optimizer)
            plan = engine.plan_epoch(90, trainer.train_images.num_views, 16, seed=0, epoch=1)
            drawn = next(iter(trainer.train_images.draw(plan, 0)))
            stepper.take(drawn, None)  # allocates
            # Whatever is created without saying where would be on the meta device, and not mix with the rest.
            with NoHost(), torch.device("meta"):
                stepper.take(drawn, None)
            trainer.position.next_stage()


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_operation_of_a_step_reads_a_number(method: str, precision: str) -> None:
    """Within operations that are made of others, too, and in the backward pass, where no watch can stand."""
    with prepared(config(method, precision=precision, batch_size=4)) as trainer:
        reads = set()
        for stage in trainer._stages:
            optimizer = engine.make_optimizer(stage.begin(), trainer.config, trainer.device)
            stepper = trainer._stepper(stage, optimizer)
            plan = engine.plan_epoch(90, trainer.train_images.num_views, 4, seed=0, epoch=1)
            drawn = next(iter(trainer.train_images.draw(plan, 0)))
            stepper.take(drawn, None)
            with profile(activities=[ProfilerActivity.CPU]) as recorder:
                stepper.take(drawn, None)
            reads |= {"_local_scalar_dense" in event.key for event in recorder.key_averages()}
            trainer.position.next_stage()
        assert (True in reads) == (method in WAITING)


def test_the_watch_sees_a_wait() -> None:
    x = torch.ones(3)
    for wait in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(), lambda: bool(x.any())):
        with pytest.raises(AssertionError, match="makes the host wait"), NoHost():
            wait()


@pytest.mark.usefixtures("deferred")
def test_what_cannot_be_recorded_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = trained(config())

    def refuse(body: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long story")

    made = capture_with(monkeypatch, refuse)
    found, _ = trained(config())
    assert found == expected
    assert made[0].replayed == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "(operation not permitted when stream is capturing); its operations are launched one by one" in error
    )


@pytest.mark.usefixtures("deferred")
def test_a_number_that_changes_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing(Method):
        """A weight that grows by epoch, kept as a plain number."""

        name, reads = "growing", frozenset({"logits"})
        factor = 0.0

        def start_epoch(self, epoch: int) -> None:
            self.factor = float(epoch)

        def terms(self, student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
            return {"growing": self.factor * (student.logits - teacher.logits).square().mean()}

    recorded: list[int] = []

    def record(body: Any) -> Any:
        recorded.append(1)
        return body

    made = capture_with(monkeypatch, record)
    torch.manual_seed(0)
    teacher = itrd.create_model("resnet8", num_classes=10)
    settings = {"train_subset": 90, "test_subset": 20, "epochs": 3, "batch_size": 16}
    itrd.distill(teacher, "resnet8", "digits", Growing(), **settings)
    assert len(recorded) == 3
    assert made[0].replayed == (5 - WARM_UP) * 3


@pytest.mark.parametrize(
    ("value", "kept"),
    [(2.5, 2.5), (True, True), ([1.0, 2], (1.0, 2)), ({"a": 1}, (1,)), ("ce", None), ([None], None)],
)
def test_numbers_that_a_recording_would_freeze(value: object, kept: object) -> None:
    assert _numbers(value) == kept


@pytest.mark.usefixtures("deferred")
def test_a_step_that_draws_on_the_host_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(body: Any) -> Any:
        torch.rand(())  # as LayerDrop decides which layers to leave out
        return body

    made = capture_with(monkeypatch, draw)
    trained(config())
    assert made[0].replayed == 0
    assert "it draws random numbers on the host" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_on_a_gpu_a_graph_computes_what_the_operations_compute(
    method: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"device": "cuda", "precision": precision, "deterministic": False}
    one_by_one, _ = trained(config(method, **settings, capture=False))
    made = noted(monkeypatch)
    by_graph, _ = trained(config(method, **settings))
    assert made
    for stepper in made:
        assert bool(stepper.replayed) == (method not in WAITING), stepper.refused
    for a, b in zip(by_graph, one_by_one, strict=True):
        assert a["train loss"] == pytest.approx(b["train loss"], rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("method", sorted(set(METHODS) - WAITING))
def test_on_a_gpu_no_step_waits(method: str) -> None:
    """Below the dispatcher, too, which :class:`NoHost` does not see."""
    with prepared(config(method, device="cuda", capture=False)) as trainer:
        original = Stepper.steps

        def watched(self: Stepper, *arguments: Any) -> Iterator[int]:
            steps, number = original(self, *arguments), None
            while True:
                # An epoch's first step brings its plan, and the first of all makes workspaces.
                torch.cuda.set_sync_debug_mode("default" if number is None else "error")
                try:
                    number = next(steps)
                except StopIteration:
                    return
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                yield number

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepper, "steps", watched)
            trainer.fit()


@pytest.mark.gpu
def test_on_a_gpu_a_recording_that_fails_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.ones(1000, device="cuda")
        with pytest.raises(RuntimeError):
            record_cuda(lambda: (x * 2).sum().item())
        torch.cuda.empty_cache()  # which torch refuses, or skips, while it believes that a recording is under way
        before = torch.cuda.memory_reserved()
        large = torch.empty(1 << 28, device="cuda")
        del large
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() <= before
        y = torch.zeros(1000, device="cuda")
        replay = record_cuda(lambda: y.add_(x))
        replay()
        replay()
        assert y.tolist() == [2.0] * 1000


@pytest.mark.gpu
def test_on_a_gpu_a_module_that_reads_a_number_goes_on_without_a_graph(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 32 * 32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)) * float(x.abs().max() > 0)

    settings = {"train_subset": 90, "test_subset": 20, "epochs": 2, "batch_size": 16, "device": "cuda"}
    itrd.distill(Reading(), Reading(), "digits", "kd", **settings)
    assert "cannot be captured" in capsys.readouterr().err


@pytest.mark.usefixtures("deferred")
def test_weights_that_are_replaced_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def record(body: Callable[[], None]) -> Callable[[], None]:
        recorded.append(body)
        return body

    made = capture_with(monkeypatch, record)
    with prepared(config()) as trainer:

        def replace(*_: Any) -> None:
            if len(recorded) == 1:
                teacher = trainer.task.teacher
                teacher.load_state_dict({k: v.clone() for k, v in teacher.state_dict().items()}, assign=True)

        trainer._callbacks = [replace]
        trainer.fit()
    assert len(recorded) == 2
    assert made[0].replayed == 5 * 3 - 2 * WARM_UP

"""Several runs in one process: each ends with the numbers it has alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from itrd.data import load_dataset
from itrd.engine.config import DistillConfig
from itrd.engine.networks import load_network
from itrd.engine.record import Result
from itrd.engine.run import prepare_distill
from itrd.engine.together import Seat, fit_together
from itrd.engine.trainer import Interrupted, Trainer
from itrd.errors import TrainingError, UserError

# Different methods, among them those that draw at random, that have memory and a first stage, and different seeds.
RUNS = [("itrd", 0), ("itrd", 1), ("crd", 0), ("abound(init_epochs=1)", 0), ("kd", 5), ("vid", 1)]


@pytest.fixture
def trainers(teacher_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    data = load_dataset("digits").subset(60, 40)
    with ExitStack() as stack:

        def make(method: str, seed: int, name: str, **settings: Any) -> Trainer:
            config = DistillConfig(
                teacher=str(teacher_folder),
                student="resnet8",
                method=method,
                seed=seed,
                data="digits",
                batch_size=16,
                out=str(tmp_path / name),
                progress=False,
                tensorboard=False,
                **{"epochs": 2, **settings},
            )
            teacher = load_network(str(teacher_folder))
            return stack.enter_context(prepare_distill(config, teacher=teacher, data=data))

        yield make


def numbers(result: Result) -> list[Any]:
    return [(e.train, e.test, e.learning_rate) for e in result.history]


def weights(result: Result) -> dict[str, Tensor]:
    return result.student.state_dict()


def test_side_by_side_is_alone(trainers: Any) -> None:
    alone = [trainers(method, seed, f"alone{i}").fit() for i, (method, seed) in enumerate(RUNS)]
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    together = fit_together([trainers(method, seed, f"both{i}") for i, (method, seed) in enumerate(RUNS)])
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Result)
        assert numbers(one) == numbers(other)
        assert all(
            torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True)
        )


def test_runs_of_different_lengths_do_not_draw_from_each_other(trainers: Any) -> None:
    """The student draws at random in every step; the longer run is left alone in the end."""

    def noisy(trainer: Trainer) -> Trainer:
        trainer.task.student.register_forward_pre_hook(lambda m, x: (x[0] + 0.1 * torch.randn(x[0].shape),))
        return trainer

    lengths = {"short": 1, "long": 4}
    alone = [noisy(trainers("kd", 0, f"{n}-alone", epochs=e)).fit() for n, e in lengths.items()]
    both = fit_together([noisy(trainers("kd", 0, n, epochs=e)) for n, e in lengths.items()])
    assert [numbers(result) for result in both] == [numbers(result) for result in alone]


def test_runs_of_one_dataset_share_its_images(trainers: Any) -> None:
    first, second = trainers("kd", 0, "a"), trainers("itrd", 1, "b")
    assert first.train_images is second.train_images
    assert first.test_images is second.test_images


def test_one_that_fails_leaves_the_others_alone(trainers: Any) -> None:
    alone = trainers("kd", 0, "alone").fit()
    fine, broken = trainers("kd", 0, "fine"), trainers("kd", 0, "broken", learning_rate=1e30)
    error, result = fit_together([broken, fine])
    assert isinstance(error, TrainingError)
    assert isinstance(result, Result)
    assert numbers(result) == numbers(alone)


def test_asked_to_stop_all_are_saved(trainers: Any, tmp_path: Path) -> None:
    alone = [trainers("crd", seed, f"alone{seed}").fit() for seed in (0, 1)]
    both = [trainers("crd", seed, f"run{seed}") for seed in (0, 1)]
    seats = [Seat(trainer) for trainer in both]
    for seat in seats:
        seat.advance(5)  # into the second epoch
        seat.trainer.request_stop()
    for seat in seats:
        with pytest.raises(Interrupted, match="epoch 2"):
            seat.advance()
        seat.trainer.folder.close()
    resumed = fit_together([trainers("crd", seed, f"run{seed}", resume=True) for seed in (0, 1)])
    assert [numbers(result) for result in resumed] == [numbers(result) for result in alone]


def test_runs_that_want_other_switches_of_the_process_are_refused(trainers: Any) -> None:
    runs = [trainers("kd", 0, "a"), trainers("kd", 1, "b", deterministic=True)]
    try:
        with pytest.raises(UserError, match="switches of the process"):
            fit_together(runs)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
def test_on_a_gpu_side_by_side_is_alone(trainers: Any) -> None:
    settings = {"device": "cuda", "deterministic": True}
    runs = [("itrd", 0), ("crd", 0), ("crd", 1)]  # of which two draw at random in their recorded steps
    alone = [trainers(m, s, f"alone{i}", **settings).fit() for i, (m, s) in enumerate(runs)]
    both = fit_together([trainers(m, s, f"both{i}", **settings) for i, (m, s) in enumerate(runs)])
    assert [numbers(result) for result in both] == [numbers(result) for result in alone]

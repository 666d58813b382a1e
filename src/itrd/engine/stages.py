"""The stages of a run: those that a method wants first, then the student's own training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from itrd.engine.config import RunConfig
from itrd.engine.rates import rate_of
from itrd.engine.task import DistillTask, StepOutput
from itrd.methods.base import Batch, FirstStage, Method
from itrd.models.base import Outputs

MAIN = "main"


@dataclass(frozen=True)
class Stage:
    """One stage: how long, how fast, what is trained, and what a step computes.

    Attributes:
        name: ``main``, or the name of the method whose first stage this is.
        epochs: passes over the training set.
        rate: learning rate of an epoch, counted from 1.
        begin: puts the modules into the modes of this stage and returns the parameters it trains.
        observe: outputs of student and teacher for images, given the teacher's if they are known already.
        loss: loss of one batch from the outputs of student and teacher.
    """

    name: str
    epochs: int
    rate: Callable[[int], float]
    begin: Callable[[], list[nn.Parameter]]
    observe: Callable[[Tensor, Outputs | None], tuple[Outputs, Outputs | None]]
    loss: Callable[[Outputs, Outputs | None, Batch], StepOutput]


def stages_of(task: DistillTask, config: RunConfig) -> list[Stage]:
    """List the stages of a task whose objective is set up."""
    first = [_first(task, method, stage, config) for method, stage in task.objective.first_stages()]
    return [*first, _main(task, config)]


def _first(task: DistillTask, method: Method, stage: FirstStage, config: RunConfig) -> Stage:
    rate = stage.learning_rate or config.learning_rate
    assert rate is not None
    return Stage(
        method.name,
        stage.epochs,
        lambda epoch: rate,
        lambda: task.first_stage_mode(stage),
        partial(task.observe, first_stage=True),
        partial(task.first_stage_loss, method),
    )


def _main(task: DistillTask, config: RunConfig) -> Stage:
    def begin() -> list[nn.Parameter]:
        task.train()
        return [p for p in task.parameters() if p.requires_grad]

    return Stage(
        MAIN,
        config.epochs,
        lambda epoch: rate_of(config, epoch),
        begin,
        task.observe,
        task.loss,
    )

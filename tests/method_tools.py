"""Small tasks for the tests of methods with a first stage, with memories, or with fusion modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from itrd.engine.task import DistillTask
from itrd.methods import Batch, Setup, create_objective
from itrd.models import create_model
from itrd.models.base import Outputs

IDENTITY = nn.Identity()


def setup_for(
    student: Outputs, teacher: Outputs, labels: Tensor | None = None, net: nn.Module = IDENTITY
) -> Setup:
    """A set-up from outputs alone."""
    labels = torch.arange(len(student.logits)) % 2 if labels is None else labels
    return Setup(student, teacher, net, IDENTITY, student.logits.shape[1], labels)


def small_task(method: str, student: str = "resnet8", teacher: str = "resnet14") -> DistillTask:
    """A task on images of 32x32 with a training set of 40 samples of 4 classes."""
    torch.manual_seed(0)
    task = DistillTask(create_model(student, 4), create_model(teacher, 4), create_objective(method))
    task.setup(small_batch()[0], 4, torch.arange(40) % 4)
    return task


def small_batch(seed: int = 0, size: int = 4) -> tuple[Tensor, Batch]:
    """Images and what belongs to them."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(40, generator=generator)[:size]
    return torch.randn(size, 3, 32, 32, generator=generator), Batch(indices % 4, indices)


def moved_by(module: nn.Module, train: Callable[[], None]) -> set[str]:
    """Names of the entries of the state that ``train`` changes."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    train()
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


def first_stage_steps(task: DistillTask, steps: int = 2) -> None:
    """A few steps of the first method's first stage, as the training loop takes them."""
    ((method, stage),) = task.objective.first_stages()
    optimizer = torch.optim.SGD(task.first_stage_mode(stage), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(steps):
        images, batch = small_batch(step)
        _step(optimizer, task.first_stage_loss(method, *task.observe(images, first_stage=True), batch).loss)


def main_steps(task: DistillTask, steps: int = 2) -> None:
    """A few steps of the main stage, as the training loop takes them."""
    task.train()
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(steps):
        _step(optimizer, task(*small_batch(step)).loss)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

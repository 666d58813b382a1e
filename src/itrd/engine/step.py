"""One training step after another: images, forward, backward, check, update, sums. No files, no display."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch.profiler import record_function

from itrd.data.plan import EpochPlan
from itrd.data.source import Drawn, ImageSource
from itrd.engine.device import autocast
from itrd.engine.metrics import Meter, accuracies
from itrd.engine.nonfinite import StepGuard
from itrd.engine.stages import Stage
from itrd.engine.table import EpochRows
from itrd.engine.task import StepOutput
from itrd.methods.base import Batch, at_least_float32
from itrd.models.base import Outputs


class Stepper:
    """Takes the steps of a stage, operation by operation.

    Args:
        stage: what a step computes.
        optimizer: of the stage.
        source: the training images.
        guard: checks losses and gradients, and applies the update.
        meter: where losses and accuracies are summed up.
        precision: of the automatic casting.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        source: ImageSource,
        guard: StepGuard,
        meter: Meter,
        precision: str,
    ) -> None:
        self.stage, self.optimizer, self.source = stage, optimizer, source
        self.guard, self.meter, self.precision = guard, meter, precision

    def steps(self, plan: EpochPlan, known: EpochRows | None, start: int) -> Iterator[int]:
        """Take the steps of an epoch, beginning with number ``start``; yield each one's number after it.

        Args:
            plan: of the epoch, on the CPU.
            known: the teacher's outputs for it, if they were looked up.
            start: number of the first step to take, from 0.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        for number, drawn in zip(itertools.count(start), self.source.draw(plan, start), strict=False):
            size = len(drawn.indices)
            self.take(drawn, known.slice(number * plan.batch_size, size) if known else None)
            self.meter.count += size
            self.guard.look(number)
            yield number

    def take(self, drawn: Drawn, teacher: Outputs | None) -> None:
        """Take one step.

        Everything that changes from step to step is in tensors that live longer than a step, changed in place: a
        recording of these operations repeats them on the next batch.

        Args:
            drawn: the batch.
            teacher: the teacher's outputs where they are known already.
        """
        batch = Batch(self.source.labels[drawn.indices], drawn.indices)
        forward = partial(self.forward, drawn, batch, teacher)
        self.guard.remember(self.optimizer)
        output = forward()
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("itrd.backward"):
            output.loss.backward()
        with record_function("itrd.update"):
            taken = self.guard.update(output, self.optimizer, forward)
        logits = at_least_float32(output.logits)
        self.meter.sum_up({**output.terms, **accuracies(logits, batch.labels)}, len(drawn.indices), taken)

    def forward(self, drawn: Drawn, batch: Batch, teacher: Outputs | None) -> StepOutput:
        """Compute the loss of one batch."""
        with record_function("itrd.augment"):
            images = self.source.images(drawn)
        with autocast(self.source.device, self.precision):
            return self.stage.step(images, batch, teacher)

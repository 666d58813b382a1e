"""One training step after another: images, forward, backward, check, update, sums. No files, no display."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from itrd.data.plan import EpochPlan, pieces
from itrd.data.source import Drawn, ImageSource
from itrd.engine.average import MovingAverage
from itrd.engine.device import autocast
from itrd.engine.metrics import Meter, accuracies
from itrd.engine.nonfinite import StepGuard
from itrd.engine.stages import Stage
from itrd.engine.table import EpochRows
from itrd.engine.task import StepOutput
from itrd.methods.base import Batch, at_least_float32
from itrd.models.base import Outputs


class MicroBatch(NamedTuple):
    """What one forward and backward pass is about.

    Attributes:
        drawn: the images.
        batch: the samples that the loss is about.
        teacher: the teacher's outputs for the images where they are known already.
        weight: of its loss in the loss of the whole batch.
    """

    drawn: Drawn
    batch: Batch
    teacher: Outputs | None
    weight: float


class Stepper:
    """Takes the steps of a stage, operation by operation.

    Args:
        stage: what a step computes.
        optimizer: of the stage.
        source: the training images.
        guard: checks losses and gradients, and applies the update.
        meter: where losses and accuracies are summed up.
        precision: of the automatic casting.
        accumulate: number of micro-batches whose gradients are added up to that of a batch.
        average: a moving average of the student that follows it, or None.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        source: ImageSource,
        guard: StepGuard,
        meter: Meter,
        precision: str,
        *,
        accumulate: int = 1,
        average: MovingAverage | None = None,
    ) -> None:
        self.stage, self.optimizer, self.source = stage, optimizer, source
        self.guard, self.meter, self.precision = guard, meter, precision
        self.accumulate, self.average = accumulate, average
        self.labelled = bool((source.labels >= 0).all())

    def own(self, plan: EpochPlan) -> EpochPlan:
        """Return the part of an epoch's plan whose images this process sees: all of it."""
        return plan

    def steps(self, plan: EpochPlan, known: EpochRows | None, start: int) -> Iterator[int]:
        """Take the steps of an epoch, beginning with number ``start``; yield each one's number after it.

        Args:
            plan: of the epoch, on the CPU.
            known: the teacher's outputs for :meth:`own` of it, if they were looked up.
            start: number of the first step to take, from 0.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        own = self.own(plan)
        row = sum(own.sizes[:start])
        for number, drawn in zip(itertools.count(start), self.source.draw(own, start), strict=False):
            size = len(drawn.indices)
            self.take(drawn, known.slice(row, size) if known else None)
            row += size
            self.meter.count += plan.sizes[number]
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
        micro_batches = self.micro_batches(drawn, teacher)
        self.guard.remember(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        values = self.reduce(_total([self.differentiate(*micro) for micro in micro_batches]))
        with record_function("itrd.update"):
            taken = self.guard.update(
                values, self.optimizer, lambda: [self.forward(*micro[:3]) for micro in micro_batches]
            )
            if self.average is not None:
                self.average.update(taken)
        self.meter.sum_up(values, self.count(drawn), taken)

    def count(self, drawn: Drawn) -> int:
        """The number of samples that a step is about."""
        return len(drawn.indices)

    def micro_batches(self, drawn: Drawn, teacher: Outputs | None) -> list[MicroBatch]:
        """Divide a batch into consecutive micro-batches."""
        whole = Batch(self.source.labels[drawn.indices], drawn.indices)
        if self.accumulate == 1:
            return [MicroBatch(drawn, whole, teacher, 1.0)]
        found, start, count = [], 0, len(drawn.indices)
        for size in pieces(count, self.accumulate):
            rows = slice(start, start + size)
            known = None if teacher is None else teacher.map(itemgetter(rows))
            batch = Batch(whole.labels[rows], whole.indices[rows])
            found.append(MicroBatch(drawn.part(start, start + size), batch, known, size / count))
            start += size
        return found

    def differentiate(
        self, drawn: Drawn, batch: Batch, teacher: Outputs | None, weight: float
    ) -> dict[str, Tensor]:
        """Add a micro-batch's gradients to the parameters'; return its losses and accuracies, weighted too."""
        output = self.forward(drawn, batch, teacher)
        with record_function("itrd.backward"):
            _times(weight, output.loss).backward()
        values = dict(output.terms)
        if self.labelled:
            values |= accuracies(at_least_float32(output.logits), batch.labels)
        return {name: _times(weight, value) for name, value in values.items()}

    def forward(self, drawn: Drawn, batch: Batch, teacher: Outputs | None) -> StepOutput:
        """Compute the loss of one micro-batch."""
        with record_function("itrd.augment"):
            images = self.source.images(drawn)
        with autocast(self.source.device, self.precision):
            return self.stage.loss(*self.observe(images, batch, teacher), batch)

    def observe(
        self, images: Tensor, batch: Batch, teacher: Outputs | None
    ) -> tuple[Outputs, Outputs | None]:
        """Run student and teacher on the images of a micro-batch."""
        return self.stage.observe(images, teacher)

    def reduce(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring gradients and values together with those of other processes: there are none."""
        return values


def _times(weight: float, x: Tensor) -> Tensor:
    return x if weight == 1 else weight * x


def _total(weighted: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sum up the values of micro-batches by name."""
    if len(weighted) == 1:
        return weighted[0]
    return {name: torch.stack([values[name] for values in weighted]).sum() for name in weighted[0]}

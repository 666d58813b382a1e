"""One run in several processes: ``torchrun --nproc_per_node=N -m itrd distill ...``.

The batch size is that of all processes together. Each takes its part of every batch of the same plan, and the sums
over processes are what one process computes on the whole batch, up to rounding and to the statistics of batch norms:

* A loss that is a mean over samples is computed on the own part and weighted by the part's share of the batch.
* A method that relates samples to each other (:attr:`itrd.methods.base.Method.relates_samples`) gets the outputs of
  all processes. Every process computes the same loss on the whole batch, weighted by one over their number, so that
  the same sum of gradients is right for both kinds, and for the method's own modules.

Gradients and losses are summed by one reduction after the backward pass. ``DistributedDataParallel`` would overlap it
with the backward pass, and wants one module with one forward and one backward pass per step; here are two networks
whose features are observed, modules of methods beside them, losses computed outside, and with ``accumulate`` several
backward passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from itrd.data.plan import EpochPlan, pieces
from itrd.data.source import Drawn
from itrd.engine.step import MicroBatch, Stepper
from itrd.engine.table import EpochRows
from itrd.engine.team import Team
from itrd.errors import UserError
from itrd.methods.base import Batch
from itrd.models.base import Outputs
from itrd.seeds import derive


@dataclass(frozen=True)
class Division:
    """How batches are divided: into consecutive micro-batches, and each of these among the processes.

    Args:
        rank: number of this process.
        size: number of processes.
        accumulate: number of micro-batches.
    """

    rank: int
    size: int
    accumulate: int

    def micro_batches(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield start and size of the micro-batches of a batch."""
        sizes = pieces(count, self.accumulate)
        return zip(itertools.accumulate(sizes, initial=start), sizes, strict=False)

    def sizes(self, count: int) -> list[int]:
        """Sizes of the processes' consecutive parts of a micro-batch; of a small one the last ones have none."""
        sizes = pieces(count, self.size)
        return sizes + [0] * (self.size - len(sizes))

    def part(self, start: int, count: int) -> tuple[int, int]:
        """Bounds of this process's part; who has none repeats the first process's, which then has no weight."""
        sizes = self.sizes(count)
        rank = self.rank if sizes[self.rank] else 0
        start += sum(sizes[:rank])
        return start, start + sizes[rank]

    def own(self, plan: EpochPlan) -> EpochPlan:
        """Return what this process sees of a plan: of each batch its parts of all micro-batches, one after another."""
        starts = itertools.accumulate(plan.sizes, initial=0)
        rows, sizes = [], []
        for start, count in zip(starts, plan.sizes, strict=False):
            parts = [self.part(*micro) for micro in self.micro_batches(start, count)]
            rows += [torch.arange(*bounds) for bounds in parts]
            sizes.append(sum(stop - start for start, stop in parts))
        index = torch.cat(rows)
        return EpochPlan(plan.order[index], plan.views[index], plan.batch_size, tuple(sizes))


class DistributedStepper(Stepper):
    """Takes a process's part in every step of a stage; see :class:`itrd.engine.step.Stepper`.

    Args:
        parts, settings: of the base class.
        team: the processes.
        reads: what the methods read, if one relates samples to each other; None where the loss is a mean.
    """

    def __init__(self, *parts: Any, team: Team, reads: frozenset[str] | None, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self._team, self._reads = team, reads
        self._division = Division(team.rank, team.size, self.accumulate)
        self._plan = EpochPlan(torch.empty(0), torch.empty(0), 1)
        self._number = 0  # of the step that comes next
        self._passes = 0  # forward passes in it so far
        self._reduced: set[nn.Parameter] | None = None

    def own(self, plan: EpochPlan) -> EpochPlan:
        """Return this process's part of every batch."""
        return self._division.own(plan)

    def steps(self, plan: EpochPlan, known: EpochRows | None, start: int) -> Iterator[int]:
        """Take the steps of an epoch, see :meth:`itrd.engine.step.Stepper.steps`.

        Args:
            plan: of the whole batches.
            known: the teacher's outputs for this process's part of it.
            start: number of the first step to take, from 0.
        """
        self._plan, self._number = plan.to(self.source.device), start
        for number in super().steps(plan, known, start):
            self._number = number + 1
            yield number

    def count(self, drawn: Drawn) -> int:
        """The number of samples of the whole batch."""
        return self._plan.sizes[self._number]

    def micro_batches(self, drawn: Drawn, teacher: Outputs | None) -> list[MicroBatch]:
        """Divide this process's part of a batch; a method that relates samples is told of all of them."""
        self._passes = 0
        found, done = [], 0
        size, division = self.count(drawn), self._division
        for start, count in division.micro_batches(self._number * self._plan.batch_size, size):
            first, last = division.part(start, count)
            part = drawn.part(done, done + last - first)
            whole = self._plan.order[start : start + count] if self._reads is not None else part.indices
            known = None if teacher is None else teacher.map(itemgetter(slice(done, done + last - first)))
            counted = division.sizes(count)[division.rank]
            weight = (count / self._team.size if self._reads is not None else counted) / size
            found.append(MicroBatch(part, Batch(self.source.labels[whole], whole), known, weight))
            done += last - first
        return found

    def observe(
        self, images: Tensor, batch: Batch, teacher: Outputs | None
    ) -> tuple[Outputs, Outputs | None]:
        """Run both networks on this process's part; put the parts together where the loss relates samples.

        Networks draw random numbers of their own in every process; the methods draw the same ones in all.
        """
        self._passes += 1
        seed = derive(torch.initial_seed(), "networks", self._number, self._passes, self._team.rank)
        devices = [self.source.device] if self.source.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            student, teacher = super().observe(images, batch, teacher)
        if self._reads is None:
            return student, teacher
        with record_function("itrd.gather"):
            gather = partial(self._team.gather, sizes=self._division.sizes(len(batch.labels)))
            assert teacher is not None
            return student.only(self._reads).map(gather), teacher.only(self._reads).map(gather)

    def reduce(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum gradients and values over the processes; all of them then take the same step."""
        with record_function("itrd.reduce"):
            trained = self._trained()
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            sums = torch.stack([value.double() for value in values.values()])
            self._team.sum([*(p.grad for p in trained if p.grad is not None), sums])
        return dict(zip(values, sums.unbind(), strict=True))

    def _trained(self) -> list[nn.Parameter]:
        """Parameters that had a gradient in the stage's first step, in whichever process.

        Raises:
            UserError: another one has a gradient now, which the other processes may not have.
        """
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self._reduced is None:
            touched = torch.tensor([float(p.grad is not None) for p in every], device=self.source.device)
            self._team.sum([touched])
            self._reduced = {p for p, number in zip(every, touched.tolist(), strict=True) if number}
        if any(p.grad is not None and p not in self._reduced for p in every):
            raise UserError(
                "a parameter has its first gradient after the first step; a network of which varying parts are used "
                "cannot be trained in several processes"
            )
        return [p for p in every if p in self._reduced]

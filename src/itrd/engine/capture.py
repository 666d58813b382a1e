"""A whole training step recorded once as a CUDA graph and replayed: one launch instead of a thousand.

The recorded operations read the batch's place in the epoch from a counter on the device, so that the host does
nothing between two steps but launch the next. What changes from epoch to epoch (order and views of the images, the
teacher's looked-up outputs, learning rate, warm-up factors) lies in tensors of fixed addresses that are filled
anew. The last, smaller batch of an epoch has other shapes and is taken operation by operation.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from itrd.data.plan import EpochPlan
from itrd.data.source import Drawn, ImageSource
from itrd.engine.average import MovingAverage
from itrd.engine.metrics import Meter
from itrd.engine.nonfinite import StepGuard
from itrd.engine.stages import Stage
from itrd.engine.step import Stepper
from itrd.engine.table import EpochRows
from itrd.errors import first_line
from itrd.methods.base import Method
from itrd.models.base import Outputs

# Full batches taken operation by operation before the recording: libraries choose their algorithms and make their
# workspaces in the first steps, which must not happen in a recording.
WARM_UP = 3

Recorder = Callable[[Callable[[], None]], Callable[[], None]]


# Graphs whose recording failed. The allocator may still point to them, up to torch 2.11 at least.
_BROKEN: list[object] = []


def record_cuda(body: Callable[[], None]) -> Callable[[], None]:
    """Record what ``body`` launches, without executing it; return what executes it.

    Everything runs on the current stream, which must not be the default one.

    Raises:
        RuntimeError: something in it cannot be recorded, such as reading a tensor on the host.
    """
    stream = torch.cuda.current_stream()
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        # Other threads, such as one that pins memory for images being read, may go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            body()
    except Exception as error:
        _clean_up(graph, pool)
        raise error.__context__ or error from None  # ending what is broken fails, too, and says less
    return graph.replay


def _clean_up(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Undo what a broken recording leaves behind: a generator and an allocator that wait for its end."""
    device = torch.cuda.current_device()
    with suppress(Exception):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())
    with suppress(Exception):  # returns the pool where the recording itself came to an end
        graph.reset()
    # Where it did not, torch leaves the allocator in the middle of it: until the process ends it would refuse to give
    # memory back, or to record again. These have no public name; a torch without them is left as it is.
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    _BROKEN.append(graph)


class CapturedStepper(Stepper):
    """Takes the steps of a stage by replaying a recording; see :class:`itrd.engine.step.Stepper`.

    Args:
        stage, optimizer, source, guard, meter, precision, accumulate, average: as of the base class; the source must
            be resident.
        modules: what is trained and what computes losses; watched for numbers that a recording would freeze.
        record: makes a recording.

    Attributes:
        replayed: steps that were replays so far.
        refused: why the step cannot be recorded; None if it can, or was not tried yet.
    """

    # Recordings of this process that failed. Each may have cut the generator off from the recordings before it.
    _failures = 0

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        source: ImageSource,
        guard: StepGuard,
        meter: Meter,
        precision: str,
        *,
        modules: nn.Module,
        record: Recorder,
        accumulate: int = 1,
        average: MovingAverage | None = None,
    ) -> None:
        super().__init__(
            stage, optimizer, source, guard, meter, precision, accumulate=accumulate, average=average
        )
        self._modules, self._record = modules, record
        self._replay: Callable[[], None] | None = None
        self._numbers: list[tuple[str, str, object]] = []
        self._warm = 0
        self._failures_seen = CapturedStepper._failures
        self._buffers: dict[str, Tensor] = {}
        self._place = torch.zeros((), dtype=torch.int64, device=self.source.device)
        self.replayed = 0
        self.refused: str | None = None
        self._held: list[
            Tensor
        ] = []  # what the recording reads and writes, so that its memory is not used again
        waiting = next((m for m in modules.modules() if isinstance(m, Method) and m.waits), None)
        if waiting is not None:  # trying would fail, and a failure costs the recordings of other runs
            self._refuse(f"{waiting.name} makes the host wait for the device")
        elif any(
            t.device.type != self.source.device.type for t in (*modules.parameters(), *modules.buffers())
        ):
            self._refuse("a parameter or buffer is not on the device, and its value would be frozen")

    def steps(self, plan: EpochPlan, known: EpochRows | None, start: int) -> Iterator[int]:
        """Take the steps of an epoch, see :meth:`itrd.engine.step.Stepper.steps`."""
        self._fill(plan, known, start)
        for number, size in enumerate(plan.sizes[start:], start):
            if size == plan.batch_size:
                self._full_batch(size)
            else:  # the last
                self._take_at(torch.arange(size, device=self.source.device) + number * plan.batch_size)
            self.meter.count += size
            self.guard.look(number)
            yield number

    def _full_batch(self, size: int) -> None:
        if self._failures_seen != CapturedStepper._failures:
            self._failures_seen, self._replay = CapturedStepper._failures, None
        if self._replay is None and self._warm >= WARM_UP and self.refused is None:
            self._capture(size)
        if self._replay is not None:
            self._replay()
            self.replayed += 1
        else:
            self._next_batch(size)
            self._warm += 1

    def _capture(self, size: int) -> None:
        drawn = _host_generators()
        try:
            self._replay = self._record(lambda: self._next_batch(size))
            if _host_generators() != drawn:
                self._replay = None
                raise RuntimeError("it draws random numbers on the host, and would repeat one draw for ever")
            self._held = self._tensors()
        except Exception as error:  # of any library on the way
            CapturedStepper._failures += 1
            self._refuse(first_line(error))

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        print(
            f"the training step cannot be captured as a CUDA graph ({reason}); its operations are launched one by one, "
            "which is slower",
            file=sys.stderr,
        )

    def _next_batch(self, size: int) -> None:
        """Take the step at the device's place and move on."""
        self._take_at(torch.arange(size, device=self.source.device) + self._place * size)
        self._place.add_(1)

    def _take_at(self, rows: Tensor) -> None:
        """Take a step on rows (B,) of the epoch."""
        batch = {name: buffer[rows] for name, buffer in self._buffers.items()}
        teacher = Outputs(batch["logits"], batch.get("embedding")) if "logits" in batch else None
        self.take(Drawn(batch["order"], batch["views"]), teacher)

    def _fill(self, plan: EpochPlan, known: EpochRows | None, start: int) -> None:
        """Put an epoch into the recording's tensors; drop the recording if it would not do."""
        values: dict[str, Tensor | None] = {"order": plan.order, "views": plan.views}
        if known is not None:
            values |= {"logits": known.logits, "embedding": known.embedding}
        for name, value in values.items():
            if value is None:
                continue
            buffer = self._buffers.get(name)
            if buffer is None:
                self._buffers[name] = value.to(self.source.device, copy=True)
            else:
                buffer.copy_(value)
        self._place.fill_(start)
        numbers = self._frozen_numbers()
        moved = self._replay is not None and _addresses(self._held) != _addresses(self._tensors())
        if numbers != self._numbers or moved:
            self._replay, self._numbers = None, numbers
            self._warm = 0

    def _tensors(self) -> list[Tensor]:
        """Weights and buffers of everything that takes part; somebody may have put others in their places."""
        networks = (self._modules, getattr(self._modules, "teacher", None))
        return [t for net in networks if net is not None for t in (*net.parameters(), *net.buffers())]

    def _frozen_numbers(self) -> list[tuple[str, str, object]]:
        """Plain numbers of the modules, in lists too: a recording keeps what they were when it was made."""
        return [
            (name, key, frozen)
            for name, module in self._modules.named_modules()
            for key, value in vars(module).items()
            if (frozen := _numbers(value)) is not None
        ]


def _numbers(value: object) -> object | None:
    """A copy of a number or of a collection of numbers; None for anything else."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)) and all(isinstance(entry, (bool, int, float)) for entry in value):
        return tuple(value)
    return None


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _host_generators() -> tuple[object, ...]:
    """States of the host's global generators, to be compared."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is the one meant
    numbers = numpy["state"]["key"].tobytes(), numpy["state"]["pos"]
    return (torch.get_rng_state().numpy().tobytes(), random.getstate(), *numbers)

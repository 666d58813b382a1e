"""Numbers that are no longer finite: found in the step where they arise, never learned from, never averaged away.

On a CPU every step is checked before its update. On a GPU asking would make the host wait for the device at every
step, so the verdicts stay there and are read now and then; a step to be skipped is undone there, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from itrd.engine.metrics import stacked
from itrd.engine.task import DistillTask
from itrd.errors import TrainingError

READ_EVERY = 100  # steps between two looks at a GPU's verdicts


class StepGuard:
    """Checks the loss, its terms and the gradients of every step, and applies the update.

    Args:
        task: whose parameters and buffers are trained.
        skip: undo and count bad steps instead of stopping.
        immediate: check before the update, on the host; otherwise on the device, read every ``READ_EVERY`` steps.
    """

    def __init__(self, task: DistillTask, *, skip: bool, immediate: bool) -> None:
        self.task = task
        self.skip = skip
        self._immediate = immediate
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._momenta: dict[Tensor, Tensor] = {}
        # Verdicts, on the device and changed in place, so that a captured step goes on with them.
        self._terms: list[str] = []
        self._judged: list[nn.Parameter] = []
        self._step: Tensor | None = None  # number of the step that is judged next
        self._first: Tensor | None = None  # number of the first bad step, -1: none
        self._verdicts: Tensor | None = None  # of that step: which terms, then which gradients, were finite
        self._outgrown: list[Tensor | None] = []  # a recording of an earlier shape may still write there
        self.start_epoch("epoch 1")

    def start_epoch(self, name: str, step: int = 0) -> None:
        """Forget the verdicts of the epoch before.

        Args:
            name: what errors call this epoch.
            step: number of its step that comes next.
        """
        self._epoch = name
        self._start = step
        if self._step is not None and self._first is not None:
            self._step.fill_(step)
            self._first.fill_(-1)

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep what a bad step would spoil; call before the step's forward pass."""
        if not self.skip:
            return
        tensors = list(self.task.buffers())  # running statistics and memories change in the forward pass
        if not self._immediate:
            tensors += _trained(optimizer)
            state: dict[Any, Any] = optimizer.state
            self._momenta = {
                p: b.clone() for p in state if (b := state[p].get("momentum_buffer")) is not None
            }
        self._kept = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def update(
        self,
        terms: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        again: Callable[[], object],
    ) -> Tensor | None:
        """Take the optimiser's step if everything is finite.

        Args:
            terms: scalars of the step, by name; its gradients are computed.
            optimizer: of the stage.
            again: computes the step's forward pass once more, for the diagnosis.

        Returns:
            None if the step was taken, else a boolean scalar on the device that says whether it was.

        Raises:
            TrainingError: something is not finite, and such steps are not to be skipped.
        """
        if self._immediate:
            if _surely_finite(terms, optimizer) or bool(self._judge(terms, optimizer)):
                self._start += 1
                optimizer.step()
                return None
            if not self.skip:
                raise TrainingError(self._message(_first_module(self.task, again)))
            self._start += 1
            self._undo(optimizer, torch.tensor(False))
            return torch.tensor(False)
        good = self._judge(terms, optimizer)
        optimizer.step()
        if not self.skip:
            return None
        self._undo(optimizer, good)
        return good

    def look(self, step: int) -> None:
        """Look at the verdicts if enough steps have gone by; call after every step with its number, from 0.

        Raises:
            TrainingError: a step was bad, and such steps are not to be skipped.
        """
        if not self._immediate and step % READ_EVERY == READ_EVERY - 1:
            self.settle()

    def settle(self) -> None:
        """Wait for the device and look at the verdicts; call before anything is saved.

        Raises:
            TrainingError: a step was bad, and such steps are not to be skipped.
        """
        if not self.skip and self._first is not None and int(self._first) >= 0:
            raise TrainingError(self._message(None))

    def _judge(self, terms: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
        """Judge a step on its device, without waiting; keep the first bad verdict; return whether it is good."""
        self._terms = list(terms)
        self._judged = [p for p in _trained(optimizer) if p.grad is not None]
        # The largest absolute entry cannot overflow, as a sum of squares can.
        norms = torch._foreach_norm(_gradients(optimizer), math.inf)
        finite = torch.cat([stacked(list(terms.values())), stacked(norms)]).isfinite()
        good = finite.all()
        if self._verdicts is None or self._verdicts.shape != finite.shape:  # the first step of a stage
            self._outgrown.append(self._verdicts)
            self._verdicts = torch.ones_like(finite)
        if self._step is None or self._first is None:
            self._step = torch.full((), self._start, device=good.device)
            self._first = torch.full((), -1, device=good.device)
        elif self._immediate:
            self._step.fill_(self._start)
        new = ~good & (self._first < 0)
        self._first.copy_(torch.where(new, self._step, self._first))
        self._verdicts.copy_(torch.where(new, finite, self._verdicts))
        self._step.add_(1)
        return good

    def _undo(self, optimizer: torch.optim.Optimizer, good: Tensor) -> None:
        """Put back what a step changed unless it was good."""
        for tensor, before in self._kept:
            tensor.detach().copy_(torch.where(good, tensor.detach(), before))
        if self._immediate:
            return  # the optimiser was not called
        for parameter, state in optimizer.state.items():
            buffer = state.get("momentum_buffer")
            if buffer is not None:  # one that this step made begins at zero
                before = self._momenta.get(parameter, torch.zeros_like(buffer))
                buffer.copy_(torch.where(good, buffer, before))

    def _message(self, module: str | None) -> str:
        assert self._first is not None
        assert self._verdicts is not None
        verdicts = self._verdicts.tolist()
        terms = [name for name, fine in zip(self._terms, verdicts, strict=False) if not fine]
        spoiled = [p for p, fine in zip(self._judged, verdicts[len(self._terms) :], strict=True) if not fine]
        names = {parameter: name for name, parameter in self.task.named_parameters()}
        what = f"{self._epoch}, step {int(self._first) + 1}: "
        if terms:
            own = [name for name in terms if name != "loss"] or terms
            what += f"the loss is not finite (term {', '.join(own)})"
        else:
            what += "the loss is finite, but not its gradient"
        if module is not None:
            what += f", first at the output of {module}"
        elif spoiled:  # the backward pass meets the last layer first
            what += f", first in the gradient of {names[spoiled[-1]]}"
        return what


def check_finite(means: dict[str, float], where: str) -> None:
    """Refuse means of which one is not finite.

    Raises:
        TrainingError: naming them and ``where``.
    """
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise TrainingError(f"not finite {where}: {', '.join(broken)}")


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for p in _trained(optimizer) if p.grad is not None]


def _surely_finite(terms: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> bool:
    """Tell cheaply, on the host; False for finite gradients, too, where the sum of their squares overflows."""
    values = [value.detach().double() for value in terms.values()]
    norms = [norm.double() for norm in torch._foreach_norm(_gradients(optimizer))]
    return bool(torch.stack(values + norms).isfinite().all())


@torch.no_grad()
def _first_module(task: DistillTask, again: Callable[[], object]) -> str | None:
    """Repeat the forward pass and name the first module, if any, whose output is not finite."""
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return hook

    named = [(name, module) for name, module in task.named_modules() if name]
    if task.teacher is not None:
        named += [(f"teacher.{name}", m) for name, m in task.teacher.named_modules() if name]
    handles = [module.register_forward_hook(look(name)) for name, module in named]
    try:
        again()
    except Exception:  # the diagnosis must not hide what it is about
        return None
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None

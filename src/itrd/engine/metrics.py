"""Sums that stay on the device until somebody reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from itrd.errors import UserError


class Meter:
    """Sample-weighted means of named scalars, accumulated in place without reading the device.

    The host counts samples by itself, so that a captured step, which the host does not see, may do the sums.

    Attributes:
        count: samples gone through, those of skipped steps included.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None  # float64 (names,)
        self._skipped: Tensor | None = None  # int64 (2,): samples, steps
        self.count = 0

    def reset(self) -> None:
        """Begin again with the same names and the same tensors."""
        for tensor in (self._sums, self._skipped):
            if tensor is not None:
                tensor.zero_()
        self.count = 0

    def add(self, values: Mapping[str, Tensor], n: int) -> None:
        """Sum up and count batch means of n samples each."""
        self.sum_up(values, n)
        self.count += n

    def sum_up(self, values: Mapping[str, Tensor], n: int, taken: Tensor | None = None) -> None:
        """Add batch means of n samples each, which the caller counts.

        If ``taken`` is given and False, the step is summed up as skipped.

        Raises:
            UserError: the names are not those of the first step.
        """
        self._prepare(list(values), next(iter(values.values())).device, taken is not None)
        assert self._sums is not None
        weighted = stacked([values[name] for name in self._names]) * n
        if taken is not None:
            assert self._skipped is not None
            weighted = torch.where(taken, weighted, 0.0)
            self._skipped[0].add_(torch.where(taken, 0, n))
            self._skipped[1].add_(torch.where(taken, 0, 1))
        self._sums.add_(weighted)

    def _prepare(self, names: list[str], device: torch.device, skips: bool) -> None:
        if self._sums is None:
            self._names = names
            self._sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        elif set(names) != set(self._names):
            new = [f"{name!r} is new" for name in names if name not in self._names]
            gone = [f"{name!r} is missing" for name in self._names if name not in names]
            raise UserError(
                f"the terms of a loss must be the same in every step, and {', '.join([*new, *gone])}; let the method "
                "return every term in every step, with a zero where there is nothing to add"
            )
        if skips and self._skipped is None:
            self._skipped = torch.zeros(2, dtype=torch.int64, device=device)

    def read(self) -> dict[str, float]:
        """Means so far over the steps that were taken; one transfer from the device."""
        if self._sums is None:
            return {}
        values = self._sums.div(self.count - self._skips()[0]).tolist()
        return dict(zip(self._names, values, strict=True))

    @property
    def skipped(self) -> int:
        """Steps that were skipped; waits for the device."""
        return self._skips()[1]

    def _skips(self) -> list[int]:
        return [0, 0] if self._skipped is None else self._skipped.tolist()

    def state_dict(self) -> dict[str, object]:
        """Sums and counts."""
        sums = [] if self._sums is None else self._sums.cpu().unbind()
        return {
            "sums": dict(zip(self._names, sums, strict=True)) if self.count else {},
            "count": self.count,
            "skipped": self._skips(),
        }

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Continue from saved sums."""
        sums: dict[str, Tensor] = state["sums"]
        self._names = list(sums)
        self._sums = torch.stack([value.to(device) for value in sums.values()]) if sums else None
        self.count = state["count"]
        skipped = state.get("skipped", [0, 0])
        self._skipped = torch.tensor(skipped, device=device) if any(skipped) else None


def stacked(scalars: Sequence[Tensor]) -> Tensor:
    """Scalars of any floating types as one float64 vector, in few kernels where the types are equal."""
    if len({scalar.dtype for scalar in scalars}) == 1:
        return torch.stack([scalar.detach() for scalar in scalars]).double()
    return torch.stack([scalar.detach().double() for scalar in scalars])


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Top-1 and top-5 accuracy of a batch in percent, as scalars on the device."""
    return {name: count * (100.0 / len(labels)) for name, count in hits(logits, labels).items()}


def hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How many images of a batch are right by top-1 and by top-5, as int64 scalars on the device."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == labels[:, None]
    return {f"top{k}": right[:, :k].sum() for k in (1, 5)}


def accuracy_text(found: Mapping[str, float], classes: int) -> str:
    """Accuracies for people to read; top-5 only where there are more than five classes to choose from."""
    top1 = f"top-1 {found['top1']:.2f}%"
    return f"{top1}, top-5 {found['top5']:.2f}%" if classes > 5 else top1

"""Sums that stay on the device until somebody reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def correct_at(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Count the samples whose label is among the k largest logits; scalar tensor on the device."""
    k = min(k, logits.shape[1])
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).sum()


class Meter:
    """Sample-weighted means of named scalars, accumulated without reading the device.

    Attributes:
        count: samples gone through, those of skipped steps included.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._skipped: Tensor | None = None  # samples, steps
        self.count = 0

    def add(self, values: Mapping[str, Tensor], n: int, taken: Tensor | None = None) -> None:
        """Add batch means of n samples each; if ``taken`` is given and False, count the step as skipped."""
        for name, value in values.items():
            weighted = value.detach().double() * n
            if taken is not None:
                weighted = torch.where(taken, weighted, 0.0)
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        if taken is not None:
            skipped = torch.stack([torch.where(taken, 0, n), torch.where(taken, 0, 1)])
            self._skipped = skipped if self._skipped is None else self._skipped + skipped
        self.count += n

    def read(self) -> dict[str, float]:
        """Means so far over the steps that were taken; one transfer from the device."""
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).div(self.count - self._skips()[0]).tolist()
        return dict(zip(self._sums, values, strict=True))

    @property
    def skipped(self) -> int:
        """Steps that were skipped; waits for the device."""
        return self._skips()[1]

    def _skips(self) -> list[int]:
        return [0, 0] if self._skipped is None else self._skipped.tolist()

    def state_dict(self) -> dict[str, object]:
        """Sums and counts."""
        return {
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "count": self.count,
            "skipped": self._skips(),
        }

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Continue from saved sums."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.count = state["count"]
        skipped = state.get("skipped", [0, 0])
        self._skipped = torch.tensor(skipped, device=device) if any(skipped) else None


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Top-1 and top-5 accuracy of a batch in percent, as scalars on the device."""
    n = labels.shape[0]
    return {f"top{k}": correct_at(logits, labels, k) * (100.0 / n) for k in (1, 5)}

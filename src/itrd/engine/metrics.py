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
    """Sample-weighted means of named scalars, accumulated without reading the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: Mapping[str, Tensor], n: int) -> None:
        """Add batch means of n samples each."""
        for name, value in values.items():
            weighted = value.detach().double() * n
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self.count += n

    def read(self) -> dict[str, float]:
        """Means so far; one transfer from the device."""
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).div(self.count).tolist()
        return dict(zip(self._sums, values, strict=True))

    def state_dict(self) -> dict[str, object]:
        """Sums and count."""
        return {"sums": {name: value.cpu() for name, value in self._sums.items()}, "count": self.count}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Continue from saved sums."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.count = state["count"]


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Top-1 and top-5 accuracy of a batch in percent, as scalars on the device."""
    n = labels.shape[0]
    return {f"top{k}": correct_at(logits, labels, k) * (100.0 / n) for k in (1, 5)}

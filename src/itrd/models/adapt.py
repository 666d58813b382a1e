"""A teacher that was trained on images of another size or normalisation than the student's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapted(nn.Module):
    """A network behind a converter from the student's images to its own.

    The student's normalisation is undone, the image is resized as a whole (bilinear, antialiased; no crop), and the
    network's normalisation is applied:

        y = (resize(x * std + mean) - net_mean) / net_std.

    Computed as resize(x) * a + b with a = std / net_std, b = (mean - net_mean) / net_std, the same up to rounding,
    because the weights of a resized pixel add up to 1.

    Attributes:
        net: the network.

    Args:
        net: the network.
        mean, std: per channel, that the given images are normalised with.
        net_mean, net_std: per channel, that the network expects; None for the same as the given ones.
        size: height and width in pixels that the network expects; None for any.
    """

    scale: Tensor
    shift: Tensor
    size: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        net_mean: Sequence[float] | None = None,
        net_std: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self._size = size
        self._expects = {
            "size": size,
            "mean": list(mean if net_mean is None else net_mean),
            "std": list(std if net_std is None else net_std),
        }
        ours, theirs = (torch.tensor(list(m), dtype=torch.float64) for m in (mean, net_mean or mean))
        spread, their_spread = (torch.tensor(list(s), dtype=torch.float64) for s in (std, net_std or std))
        # Buffers, so that they follow the network to a device and are part of the key of a table of its outputs.
        self.register_buffer("scale", (spread / their_spread).float().view(1, -1, 1, 1))
        self.register_buffer("shift", ((ours - theirs) / their_spread).float().view(1, -1, 1, 1))
        self.register_buffer("size", torch.tensor(size or 0))

    def describe(self) -> dict[str, Any]:
        """What the network expects: ``size`` (None: any), ``mean`` and ``std`` of its images."""
        return dict(self._expects)

    def adapt(self, images: Tensor) -> Tensor:
        """Convert images (B, C, H, W) of the student to (B, C, size, size) of the network."""
        if self._size is not None and images.shape[2:] != (self._size, self._size):
            images = F.interpolate(images, (self._size, self._size), mode="bilinear", antialias=True)
        return torch.addcmul(self.shift, images, self.scale)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network makes of the converted images."""
        return self.net(self.adapt(images))

"""What a training loop asks of its images, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from itrd.data.plan import EpochPlan


class Drawn(NamedTuple):
    """One batch as it arrives at a training step.

    Attributes:
        indices: int64 (B,), positions in the training set; on the training device.
        views: int64 (B,), which random view of each image; on the training device.
        pixels: (B, C, H, W) on the training device, where the source prepares images outside of the step; None
            where the step makes them itself from indices and views.
    """

    indices: Tensor
    views: Tensor
    pixels: Tensor | None = None

    def part(self, start: int, stop: int) -> Drawn:
        """Return the samples ``start`` to ``stop`` of the batch."""
        pixels = None if self.pixels is None else self.pixels[start:stop]
        return Drawn(self.indices[start:stop], self.views[start:stop], pixels)


class ImageSource(Protocol):
    """A split of a dataset, ready to be trained on.

    Attributes:
        labels: int64 (N,), on the training device.
        num_views: number of random views of an image; a view's number decides its augmentation.
        channels_last: memory order of the batches.
        shape: (C, H, W) of an unaugmented image.
    """

    shape: tuple[int, ...]
    labels: Tensor
    num_views: int
    channels_last: bool

    def __len__(self) -> int:
        """The number of images."""
        ...

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        ...

    @property
    def resident(self) -> bool:
        """Whether batches are made on the device from indices and views alone, by operations of fixed shapes."""
        ...

    def draw(self, plan: EpochPlan, start: int) -> Iterator[Drawn]:
        """Yield the batches of an epoch, beginning with number ``start`` (from 0)."""
        ...

    def images(self, drawn: Drawn) -> Tensor:
        """Return a batch's images, normalised: float32 (B, C, H, W)."""
        ...

    def batch(self, indices: Tensor, views: Tensor) -> Tensor:
        """Return images as seen in the given views, normalised: float32 (B, C, H, W), for int64 (B,) each."""
        ...

    def plain(self, indices: Tensor) -> Tensor:
        """Return images as they are, normalised: float32 (B, C, H, W), for int64 indices (B,)."""
        ...

"""A split held in device memory, which makes augmented batches there.

Every step is a fixed sequence of tensor operations of fixed shapes: no loop over images, no wait for
the device, so that a batch can be recorded in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from itrd.data.datasets import Split
from itrd.data.plan import EpochPlan
from itrd.data.source import Drawn


class DeviceImages:
    """The images of a split, zero-padded, as uint8 on a device, and their labels.

    A view is one way to see an image: with ``side = 2 * padding + 1``, view
    ``v = (dy * side + dx) * flips + f`` is the crop whose upper left corner is at row ``dy`` and
    column ``dx`` of the padded image, mirrored left to right if ``f`` is 1 (``flips`` is 2 with
    ``flip``, otherwise 1 and ``f`` is 0). CIFAR has 9 * 9 * 2 = 162; the 81st, view 80, is
    the image as it is.

    Attributes:
        labels: int64 (N,), on the device.
        num_views: number of views of an image.
        shape: (C, H, W) of an image.
        channels_last: memory order of the batches.
    """

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        padding: int,
        flip: bool,
        device: torch.device | str,
        channels_last: bool = False,
    ) -> None:
        count, channels, height, width = split.images.shape
        if padding < 0:
            raise ValueError(f"padding must not be negative, but is {padding}")
        if not len(mean) == len(std) == channels:
            raise ValueError(f"need a mean and a std for each of {channels} channels, not {mean} and {std}")
        self.shape: tuple[int, ...] = (channels, height, width)
        self.labels = torch.tensor(split.labels, device=device)
        self._side = 2 * padding + 1
        self._flips = 2 if flip else 1
        self.num_views = self._side**2 * self._flips

        padded_height, padded_width = height + 2 * padding, width + 2 * padding
        padded = torch.zeros(count, channels, padded_height, padded_width, dtype=torch.uint8, device=device)
        inside = padded[:, :, padding : padding + height, padding : padding + width]
        inside.copy_(torch.tensor(split.images))
        # All crops of all images, (N, side, side, C, H, W), are overlapping windows into the padded
        # images: strides, no memory.
        image, channel, row, column = padded.stride()
        self._crops = padded.as_strided(
            (count, self._side, self._side, channels, height, width),
            (image, row, column, channel, row, column),
        )
        # Tensors on the device, not numbers: division by a number is turned into a multiplication on
        # CUDA, which rounds otherwise.
        self._mean, self._std = (
            torch.tensor(list(values), dtype=torch.float32, device=device).view(1, channels, 1, 1)
            for values in (mean, std)
        )
        self._scale = torch.full((1, 1, 1, 1), 255.0, device=device)
        self.channels_last = channels_last
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.labels.device

    def batch(self, indices: Tensor, views: Tensor) -> Tensor:
        """Return images as seen in the given views, normalised: float32 (B, C, H, W).

        The numbers are exactly those of padding with zeros, cropping, flipping, dividing by 255,
        subtracting the mean and dividing by the standard deviation, in float32 and in this order.

        Args:
            indices: int64 (B,), which images; on the device.
            views: int64 (B,), in 0..num_views-1; on the device.
        """
        crop = torch.div(views, self._flips, rounding_mode="floor")
        dy = torch.div(crop, self._side, rounding_mode="floor")
        pixels = self._crops[indices, dy, crop - dy * self._side]
        if self._flips == 2:
            mirrored = (views - 2 * crop).bool().view(-1, 1, 1, 1)
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return self._normalised(pixels)

    def plain(self, indices: Tensor) -> Tensor:
        """Return images as they are, normalised: float32 (B, C, H, W); ``indices`` as in :meth:`batch`."""
        middle = self._side // 2
        return self._normalised(self._crops[:, middle, middle][indices])

    @property
    def resident(self) -> bool:
        """Always: batches are made on the device."""
        return True

    def draw(self, plan: EpochPlan, start: int = 0) -> Iterator[Drawn]:
        """Yield an epoch's batches as indices and views, from batch ``start``; one copy for the whole epoch."""
        for number, (indices, views) in enumerate(plan.to(self.device)):
            if number >= start:
                yield Drawn(indices, views)

    def images(self, drawn: Drawn) -> Tensor:
        """Return a drawn batch's images, see :meth:`batch`."""
        return self.batch(drawn.indices, drawn.views)

    def _normalised(self, pixels: Tensor) -> Tensor:
        values = pixels.to(torch.float32, memory_format=self._format)
        return values.div_(self._scale).sub_(self._mean).div_(self._std)

"""Which image is seen when in an epoch, and in which view.

The plan depends on (seed, epoch) alone: it is the same on every device and needs no state to resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from itrd.seeds import derive


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The order of one epoch: image ``order[i]`` is seen in view ``views[i]``.

    ``order`` and ``views`` are int64 (N,). Iterating yields (indices, views), both (B,), in batches
    of ``batch_size``; the last one may be smaller. Where ``uneven`` is given, it lists the batches' sizes instead.
    """

    order: Tensor
    views: Tensor
    batch_size: int
    uneven: tuple[int, ...] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of images in each batch."""
        if self.uneven is not None:
            return self.uneven
        full, rest = divmod(len(self.order), self.batch_size)
        return (self.batch_size,) * full + (rest,) * (rest > 0)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.order.split(self.sizes), self.views.split(self.sizes), strict=True)

    def to(self, device: torch.device | str) -> EpochPlan:
        """Return the plan on a device: one copy for the whole epoch."""
        return replace(self, order=self.order.to(device), views=self.views.to(device))


def plan_epoch(n: int, num_views: int, batch_size: int, *, seed: int, epoch: int) -> EpochPlan:
    """Draw the plan of one epoch over ``n`` images, on the CPU: a permutation, and a view for each, all alike.

    Args:
        n: number of images.
        num_views: of :class:`itrd.data.device.DeviceImages`.
        batch_size: images in a batch; the last batch holds what is left. Where that is a single image, of which a
            batch norm could make nothing, it joins the batch before.
        seed: of the run.
        epoch: number of the epoch.

    Raises:
        ValueError: a number is not positive.
    """
    if min(n, num_views, batch_size) < 1:
        raise ValueError(f"need positive numbers, not {n=}, {num_views=}, {batch_size=}")
    order = torch.randperm(n, generator=_generator(seed, epoch, "order"))
    views = torch.randint(num_views, (n,), generator=_generator(seed, epoch, "views"))
    full, rest = divmod(n, batch_size)
    joined = (batch_size,) * (full - 1) + (batch_size + 1,) if rest == 1 and full else None
    return EpochPlan(order, views, batch_size, joined)


def pieces(count: int, most: int) -> list[int]:
    """Sizes of the consecutive pieces, ``most`` at the most, into which a batch of ``count`` images is divided.

    The pieces are as equal as they can be, the larger ones first. None is a single image, of which a batch norm could
    make nothing, unless ``count`` is 1: there are fewer pieces then.
    """
    number = max(1, min(most, count // 2))
    return [count // number + (i < count % number) for i in range(number)]


def _generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(derive(seed, purpose, epoch))

"""Random views of an image, each a pure function of the image's index and the view's number.

A view's number is the seed of its augmentation: whoever asks for view v of image i, in whichever process, gets the same
pixels. So a run is reproducible with any number of workers, and resumes in the middle of an epoch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from itrd.errors import DataError
from itrd.extras import require
from itrd.seeds import derive

UNLIMITED = 2**31  # number of views where every number is another augmentation
SMALL = 64  # pixels; images up to here are shown whole, larger ones are cropped at the rim
POLICIES = {
    "randaugment": "RandAugment",
    "trivialaugment": "TrivialAugmentWide",
    "autoaugment": "AutoAugment",
}

# Of the random crop of photographs, as in Szegedy et al., 2015: share of the area, and width over height.
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


class Augmentation(Protocol):
    """How training images are varied.

    Attributes:
        num_views: number of views of an image.
    """

    @property
    def num_views(self) -> int:
        """How many views there are."""
        ...

    def describe(self) -> str:
        """Say in a few words what it does, for records."""
        ...

    def __call__(self, pixels: Tensor, index: int, view: int) -> Tensor:
        """Return a view of an image.

        Args:
            pixels: (C, H, W) as read, uint8, or floating-point in 0..1.
            index: of the image.
            view: its number, in 0..num_views-1.

        Returns:
            (C, S, S) of the same type.
        """
        ...


@dataclass(frozen=True)
class Crop:
    """Pad with zeros, crop anywhere, mirror: the views of :class:`itrd.data.device.DeviceImages`, bit for bit.

    Attributes:
        size: side that images are brought to first; None if they have their size already.
        padding: pixels on every side.
        flip: whether there are mirrored views.
    """

    size: int | None
    padding: int
    flip: bool

    @property
    def num_views(self) -> int:
        """(2 padding + 1)^2 crops, mirrored or not."""
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    def __call__(self, pixels: Tensor, index: int, view: int) -> Tensor:
        """Return crop and flip number ``view`` of the image at its size."""
        pixels = fit(pixels, self.size)
        height, width = pixels.shape[1:]
        crop, mirrored = divmod(view, 2) if self.flip else (view, 0)
        dy, dx = divmod(crop, 2 * self.padding + 1)
        cut = F.pad(pixels, [self.padding] * 4)[:, dy : dy + height, dx : dx + width]
        return cut.flip(-1) if mirrored else cut

    def describe(self) -> str:
        """Say in a few words what it does."""
        parts = [f"padding {self.padding} and crop"] * (self.padding > 0) + ["mirroring"] * self.flip
        return ", ".join(parts) or "none"


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of a photograph, resized to a square, mirrored in one half of the views.

    The part has 8 to 100% of the area and is 3:4 to 4:3 in shape (Szegedy et al., 2015, arXiv 1409.4842).

    Attributes:
        size: side of the result.
        flip: whether to mirror.
    """

    size: int
    flip: bool

    @property
    def num_views(self) -> int:
        """Unlimited: the number is a seed."""
        return UNLIMITED

    def __call__(self, pixels: Tensor, index: int, view: int) -> Tensor:
        """Return the part that the view's seed chooses."""
        generator = torch.Generator().manual_seed(derive(view, "resized crop", index))
        top, left, height, width = _random_box(pixels.shape[1], pixels.shape[2], generator)
        part = resize(pixels[:, top : top + height, left : left + width], (self.size, self.size))
        return part.flip(-1) if self.flip and torch.rand((), generator=generator) < 0.5 else part

    def describe(self) -> str:
        """Say in a few words what it does."""
        return ", ".join([f"random part resized to {self.size}", *["mirroring"] * self.flip])


@dataclass(frozen=True)
class Strong:
    """A random geometry, then a policy of colour and shape on top of it.

    Attributes:
        geometry: crop and flip.
        policy: takes and returns uint8 (C, S, S); draws from torch's, NumPy's or Python's global generator.
    """

    geometry: Crop | ResizedCrop
    policy: Callable[[Tensor], Tensor]

    @property
    def num_views(self) -> int:
        """Unlimited: the number is a seed."""
        return UNLIMITED

    def __call__(self, pixels: Tensor, index: int, view: int) -> Tensor:
        """Return the policy's answer to a random crop, both chosen by the view's seed."""
        shown = derive(view, "geometry", index) % self.geometry.num_views
        with seeded(view, index):
            return self.policy(self.geometry(pixels, index, shown))

    def describe(self) -> str:
        """Say in a few words what it does."""
        return f"{self.geometry.describe()}, {type(self.policy).__name__}"


@dataclass(frozen=True)
class Own:
    """A user's function in place of every augmentation.

    Attributes:
        size: side of the result; what the function returns is resized to it where it has another one.
        function: takes an image as it was read, uint8 (3, H, W), and returns one, uint8 or floating-point in 0..1;
            draws from torch's, NumPy's or Python's global generator.
    """

    size: int
    function: Callable[[Tensor], Tensor]

    @property
    def num_views(self) -> int:
        """Unlimited: the number is a seed."""
        return UNLIMITED

    def __call__(self, pixels: Tensor, index: int, view: int) -> Tensor:
        """Return the function's answer under the view's seed.

        Raises:
            DataError: it is no image.
        """
        with seeded(view, index):
            made = self.function(pixels)
        if not isinstance(made, Tensor) or made.ndim != 3:
            raise DataError(
                f"the augmentation must return a tensor (C, H, W), not {type(made).__name__}"
                f"{tuple(getattr(made, 'shape', ()))}; end it with torchvision's v2.ToImage(), for example"
            )
        return fit(made.as_subclass(Tensor), self.size)

    def describe(self) -> str:
        """Say in a few words what it does."""
        return f"the function {getattr(self.function, '__name__', type(self.function).__name__)}"


@dataclass(frozen=True)
class AsGiven:
    """What a dataset of the user's returns, augmented by itself or not at all: the seed is set when it is read.

    Attributes:
        size: side that images are brought to; None to leave them as they are.
    """

    size: int | None

    @property
    def num_views(self) -> int:
        """Unlimited: the number is a seed."""
        return UNLIMITED

    def __call__(self, pixels: Tensor, index: int, view: int) -> Tensor:
        """Return the image, at its size."""
        return fit(pixels, self.size)

    def describe(self) -> str:
        """Say in a few words what it does."""
        return "the dataset's own"


def policy_of(name: str) -> Callable[[Tensor], Tensor]:
    """Return torchvision's policy of this name, with its default settings: one of :data:`POLICIES`.

    Raises:
        UserError: torchvision is not installed.
    """
    policy: Callable[[Tensor], Tensor] = getattr(
        require("torchvision.transforms.v2", "torchvision"), POLICIES[name]
    )()
    return policy


def fit(pixels: Tensor, size: int | None) -> Tensor:
    """Bring an image (C, H, W) to ``size`` x ``size``, as it is evaluated; None, or its own size, leaves it alone.

    The shorter side is resized, to ``size`` for small images and to 8/7 of it for those above :data:`SMALL` (256 for
    224), then the middle is cut out.
    """
    height, width = pixels.shape[1:]
    if size is None or (height, width) == (size, size):
        return pixels
    shorter = size if size <= SMALL else round(size * 8 / 7)
    least = min(height, width)
    pixels = resize(pixels, (int(shorter * height / least), int(shorter * width / least)))
    top, left = (round((side - size) / 2) for side in pixels.shape[1:])
    return pixels[:, top : top + size, left : left + size]


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (C, H, W) to (height, width), bilinear with antialiasing; the type stays."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]


@contextmanager
def seeded(view: int, index: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), NumPy and Python by (view, index); restore them afterwards."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - what others draw from
    seed = derive(view, "view", index)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002


def _random_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part; the middle where no try fits into the image."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    for _ in range(_TRIES):
        area = height * width * uniform(*_AREA)
        ratio = math.exp(uniform(*map(math.log, _RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return below(height - h + 1), below(width - w + 1), h, w
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w

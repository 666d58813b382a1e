"""What a dataset holds, in words: `itrd datasets ./photos`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from itrd.data.datasets import AnySplit, ImageDataset, Split
from itrd.data.decode import CorruptImageError
from itrd.data.lazy import LazySplit, evenly
from itrd.data.opening import Reading, open_dataset
from itrd.data.resident import checked
from itrd.data.views import Crop, fit

_NAMED = 5  # corrupt images that are named
_MEASURED = 2048  # images of which mean and deviation are computed


def survey(source: Any, reading: Reading, *, root: str = "data", statistics: bool = False) -> Iterator[str]:
    """Yield lines that describe a dataset: how it is read, its classes, sizes, and images that cannot be decoded.

    Every image is decoded, to see whether it can be; for a folder, what is found is remembered there, so that a run
    need not do so again.

    Args:
        source: see :func:`itrd.data.opening.open_dataset`.
        reading: how images are read.
        root: folder of the named datasets.
        statistics: also compute mean and deviation of each channel, over up to 2,048 training images.

    Raises:
        DataError: it cannot be read.
    """
    data = open_dataset(source, reading, root=root)
    yield f"{data.name}: {data.facts.get('kind', 'named dataset')}"
    for role, split in (("training", data.train), ("test", data.test)):
        yield f"  {role} images: {_of_split(split, data)}"
        broken = [] if not isinstance(split, LazySplit) else _broken(split)
        if broken:
            shown = ", ".join(broken[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
            yield f"    cannot be decoded, and are left out: {len(broken):,} ({shown})"
    if "val_fraction" in data.facts:
        yield f"  the test images are {data.facts['val_fraction']:g} of each class, held out"
    if data.num_classes:
        shown = ", ".join(data.class_names[:10]) + (", ..." if data.num_classes > 10 else "")
        yield f"  classes: {data.num_classes} ({shown})"
    how = data.augmentation or Crop(data.image_size, data.padding, data.flip)
    size = "as they are" if data.image_size is None else f"brought to {data.image_size} x {data.image_size}"
    yield f"  read: {size}; augmentation: {how.describe()}"
    yield f"  normalised with mean {_rounded(data.mean)}, deviation {_rounded(data.std)}"
    if statistics:
        mean, std, count = _statistics(data)
        yield f"  measured on {count:,} training images: mean {_rounded(mean)}, deviation {_rounded(std)}"
    yield f"  fingerprint: {data.fingerprint}"


def _of_split(split: AnySplit, data: ImageDataset) -> str:
    if not len(split):
        return "none with labels"
    text = f"{len(split):,}"
    if split.labels[0] < 0:
        text += ", without labels"
    else:
        counts = np.bincount(split.labels, minlength=data.num_classes)
        text += f", {_span(counts.min(), counts.max())} of each class"
    sizes = np.array(_sizes(split))
    if not len(sizes):
        return text
    (h0, w0), (h1, w1) = sizes.min(axis=0), sizes.max(axis=0)
    return f"{text}, {_span(h0, h1)} pixels high and {_span(w0, w1)} wide"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _sizes(split: AnySplit) -> list[tuple[int, int]]:
    """Return height and width of a few images."""
    if isinstance(split, Split):
        return [(split.images.shape[2], split.images.shape[3])]
    sizes = []
    if isinstance(split, LazySplit):
        for index in evenly(len(split)):
            with suppress(CorruptImageError):
                sizes.append(split.store.size(int(split.rows[index])))
    return sizes


def _broken(split: LazySplit) -> list[str]:
    kept = set(checked(split).rows.tolist())
    return [split.store.name(row) for row in split.rows.tolist() if row not in kept]


def _statistics(data: ImageDataset) -> tuple[np.ndarray, np.ndarray, int]:
    """Return mean and deviation of the pixels in 0..1, as the images are evaluated."""
    total, squares, pixels, images = np.zeros(len(data.mean)), np.zeros(len(data.mean)), 0, 0
    for index in evenly(len(data.train), _MEASURED):
        with suppress(CorruptImageError):
            image = fit(data.train.read(index, 0), data.image_size)
            values = image.flatten(1).double() / (1 if image.is_floating_point() else 255)
            total += values.sum(1).numpy()
            squares += values.square().sum(1).numpy()
            pixels += values.shape[1]
            images += 1
    mean = total / max(pixels, 1)
    return mean, np.sqrt(np.maximum(squares / max(pixels, 1) - mean**2, 0)), images


def _rounded(values: Any) -> str:
    return ", ".join(f"{float(value):.4f}" for value in values)

"""What of a dataset stays in memory: decoded once if it fits, and of the rest only what can be decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from itrd.data.datasets import AnySplit, ImageDataset, Split
from itrd.data.decode import CorruptImageError
from itrd.data.lazy import LazySplit
from itrd.data.views import Crop, fit
from itrd.errors import DataError, UserError
from itrd.files import read_json, write_json

if TYPE_CHECKING:
    from itrd.data.opening import Reading

RESIDENT_LIMIT = 2 << 30  # bytes of decoded images that are kept in memory


def bring_in(data: ImageDataset, reading: Reading) -> ImageDataset:
    """Decode the splits that are to be kept in memory; of the others leave out what cannot be decoded.

    Raises:
        DataError: an image cannot be decoded and the reading is strict, or none can be.
        UserError: the images are to be kept, and cannot be.
    """
    if reading.resident == "yes" and data.augmentation is not None:
        raise UserError(
            "resident=yes keeps every image in one size, which allows the augmentations crop and none; choose one with "
            "augment, or leave resident out"
        )
    if isinstance(data.train, Split) and not data.facts:
        return data  # in memory already, and to be used as it is
    room = {"auto": RESIDENT_LIMIT, "yes": 1 << 62, "no": 0}[reading.resident]
    splits: dict[str, AnySplit] = {}
    unreadable: dict[str, int] = {}
    for role in ("test", "train"):
        split: AnySplit = getattr(data, role)
        needed = len(split) * len(data.mean) * (data.image_size or 0) ** 2
        keep = needed <= room and (role == "test" or data.augmentation is None)
        splits[role] = _brought_in(split, data.image_size, keep, reading.strict)
        if keep:
            room -= needed
        if len(splits[role]) < len(split):
            unreadable[f"unreadable_{role}"] = len(split) - len(splits[role])
    how = data.augmentation or Crop(data.image_size, data.padding, data.flip)
    facts = {**data.facts, "image_size": data.image_size, "augmentation": how.describe(), **unreadable}
    return replace(data, train=splits["train"], test=splits["test"], facts=facts, reading=reading)


def _brought_in(split: AnySplit, size: int | None, keep: bool, strict: bool) -> AnySplit:
    fixed = isinstance(split, Split) or (isinstance(split, LazySplit) and split.store.fixed)
    if keep and fixed and size is not None and len(split):
        return _decoded(split, size, strict)
    return checked(split) if isinstance(split, LazySplit) and not strict else split


def _decoded(split: AnySplit, size: int, strict: bool) -> Split:
    def one(index: int) -> Tensor | None:
        try:
            return fit(split.read(index, 0), size)
        except CorruptImageError:
            if strict:
                raise
            return None

    images: np.ndarray | None = None
    kept = np.zeros(len(split), dtype=bool)
    for index, pixels in enumerate(_over(split, one)):
        if pixels is None:
            continue
        if images is None:
            images = np.empty((len(split), len(pixels), size, size), dtype=np.uint8)
        images[index] = pixels.numpy()
        kept[index] = True
    if images is None:
        raise _nothing(split)
    if not kept.all():
        images, split = images[kept], split.take(np.flatnonzero(kept))
    return Split(images, split.labels, split.fingerprint)


def checked(split: LazySplit) -> LazySplit:
    """Leave out the images that cannot be decoded; what was found is remembered beside them."""
    if not split.store.encoded or not len(split):
        return split
    corrupt = _remembered(split)
    if corrupt is None:
        corrupt = [index for index, bad in enumerate(_over(split, split.is_corrupt)) if bad]
        _remember(split, corrupt)
    if len(corrupt) == len(split):
        raise _nothing(split)
    return split.take(np.setdiff1d(np.arange(len(split)), corrupt)) if corrupt else split


def _nothing(split: AnySplit) -> DataError:
    where = f", {split.name(0)} for one" if isinstance(split, LazySplit) else ""
    return DataError(f"none of the {len(split)} images can be decoded{where}; replace them")


def _over(split: AnySplit, function: Callable[[int], Any]) -> Iterator[Any]:
    """Map a function over the images, in order; in several threads where the images allow it."""
    if isinstance(split, LazySplit) and not split.store.encoded:
        yield from map(function, range(len(split)))
        return
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(split), 1024):  # no more of them under way than that
            yield from pool.map(function, range(start, min(start + 1024, len(split))))


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _remembered(split: LazySplit) -> list[int] | None:
    """Return the images that are known to be corrupt; None where this split was never checked."""
    if split.checked is None:
        return None
    try:
        found = read_json(split.checked)[split.source]
        return [index for index in found if 0 <= index < len(split)]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(split: LazySplit, corrupt: list[int]) -> None:
    """Write down, where that is possible, which images are corrupt: to find out, every image is decoded."""
    if split.checked is None:
        return
    with suppress(OSError, ValueError, TypeError):
        known = read_json(split.checked) if split.checked.exists() else {}
        write_json(split.checked, {**known, split.source: corrupt})

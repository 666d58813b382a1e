"""Datasets that are given in Python: map-style, iterable, a DataLoader, of torchvision, of the Hugging Face library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from itrd.data import tables
from itrd.data.decode import to_tensor
from itrd.data.folders import TESTS
from itrd.data.lazy import evenly, sampled_fingerprint
from itrd.data.parts import Part, as_labels
from itrd.data.views import seeded
from itrd.errors import DataError

_PROBES = 16  # items that are read twice to see whether a dataset augments its images itself
_IMAGE_KEYS = ("image", "img", "pixel_values", "images")
_LABEL_KEYS = ("label", "labels", "target", "class")


def read_object(
    source: Any, columns: tables.Columns, test_split: str | None, limit: int
) -> tuple[str, Part | None, Part | None]:
    """Return the name of a dataset, its training part and its test part, one of which may be missing.

    Args:
        source: a pair (train, test); an object with ``train`` and one of ``val``, ``validation``, ``valid`` and
            ``test``; a mapping with both or one of these; a LightningDataModule; or the training images alone.
        columns: of a dataset of the Hugging Face library.
        test_split: which split to test on; None for the first that is there.
        limit: bytes that an iterable dataset may need in memory.

    Raises:
        DataError: it is none of these, or its items are no images.
    """
    train, test = _halves(source, test_split)
    if train is None and test is None:
        raise DataError("there are no images: both halves of the data are None; give at least one")
    first = test if train is None else train
    name = type(first.dataset if isinstance(first, DataLoader) else first).__name__

    def part(half: Any, role: str) -> Part:
        title = f"{name} ({role})"
        return tables.hf_part(half, title, columns) if _is_hf(half) else _part(half, title, limit)

    return (
        name,
        None if train is None else part(train, "train"),
        None if test is None else part(test, "test"),
    )


def _halves(source: Any, test_split: str | None) -> tuple[Any, Any]:
    names = TESTS if test_split is None else (test_split,)
    if test_split is not None and not isinstance(source, Mapping) and not hasattr(source, "train"):
        raise DataError(f"test_split names a split, and this {type(source).__name__} has none; leave it out")
    if isinstance(source, tuple):
        if len(source) != 2:
            raise DataError(f"a tuple must be a pair of datasets (train, test), not {len(source)} things")
        if isinstance(source[1], (Tensor, np.ndarray)) and source[1].ndim < 2:
            raise DataError(
                f"a pair must be datasets (train, test), and its second part is a {type(source[1]).__name__} of shape "
                f"{tuple(source[1].shape)}; for tensors of images and labels use torch.utils.data.TensorDataset(X, y)"
            )
        return source
    if isinstance(source, Mapping):
        if "train" not in source and not any(name in source for name in names):
            raise DataError(
                f"a mapping of datasets needs 'train', or 'test' to test alone; it has {', '.join(map(repr, source))}"
            )
        if test_split is not None and test_split not in source:
            raise DataError(f"nothing is called {test_split}; the mapping has {', '.join(map(repr, source))}")
        return source.get("train"), next((source[name] for name in names if name in source), None)
    if hasattr(source, "train_dataloader"):
        source.prepare_data()
        source.setup("fit")
        return _one_loader(source.train_dataloader(), "train"), _one_loader(_validation(source), "val")
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__") and hasattr(source, "train"):
        if test_split is not None and not hasattr(source, test_split):
            raise DataError(f"the {type(source).__name__} has no attribute {test_split} to test on")
        return source.train, next((getattr(source, name) for name in names if hasattr(source, name)), None)
    return source, None


def _validation(module: Any) -> Any:
    """Return what a LightningDataModule validates on; None where it does not say."""
    if not hasattr(module, "val_dataloader"):
        return None
    try:
        return module.val_dataloader()
    except Exception as error:
        # Lightning's base class has the function, which raises an error of Lightning's own.
        if type(error).__name__ != "MisconfigurationException":
            raise
        return None


def _one_loader(loaders: Any, role: str) -> Any:
    """Return the only one of a list of DataLoaders, or what is given; None for an empty list."""
    if not isinstance(loaders, (list, tuple)):
        return loaders
    if len(loaders) > 1:
        raise DataError(
            f"{role}_dataloader() of the LightningDataModule gives {len(loaders)} loaders, and a run takes one; return "
            "the one that counts, or give a pair (train, test) of datasets"
        )
    return loaders[0] if loaders else None


def _is_hf(data: Any) -> bool:
    return hasattr(data, "features") and hasattr(data, "select_columns") and hasattr(data, "__len__")


def _part(data: Any, title: str, limit: int) -> Part:
    items, collate = _unwrapped(data, title)
    names = getattr(items, "classes", None)
    if isinstance(items, IterableDataset) or not (
        hasattr(items, "__getitem__") and hasattr(items, "__len__")
    ):
        if not isinstance(items, Iterable):
            raise DataError(
                f"{title} is no dataset; give a folder, a name, a dataset with __len__ and __getitem__, an iterable, a "
                "DataLoader, or a pair (train, test) of these"
            )
        if collate is not None:
            raise DataError(
                f"{title} is iterable and has a collate_fn; give it as a dataset with __getitem__"
            )
        items = _read_in(items, title, limit)
    if not len(items):
        raise DataError(f"{title} is empty; give it images")
    store = ItemStore(items, title, _is_fixed(items, title) and collate is None, collate)
    labels, words = as_labels(_labels_of(items, store), title)
    source = sampled_fingerprint(labels, lambda row: store.pixels(row, 0).contiguous().numpy().tobytes())
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        words = words or tuple(names)
    return Part(store, labels, words, source, title, {"kind": f"Python object {title.partition(' ')[0]}"})


def _unwrapped(data: Any, title: str) -> tuple[Any, Callable[[list[Any]], Any] | None]:
    """Return the dataset of a DataLoader and its collate function, if it has one of its own."""
    if not isinstance(data, DataLoader):
        return data, None
    if not isinstance(data.dataset, IterableDataset):
        plain = isinstance(data.sampler, (RandomSampler, SequentialSampler))
        if not plain or type(data.batch_sampler) is not BatchSampler:
            sampler = type(data.batch_sampler if plain else data.sampler).__name__
            raise DataError(
                f"the DataLoader of {title} draws with {sampler}; a run draws its own order, every image once an "
                "epoch: leave the sampler out, or put repetitions into the dataset"
            )
    return data.dataset, None if data.collate_fn is default_collate else data.collate_fn


@dataclass(frozen=True)
class ItemStore:
    """Items of a dataset of the user's: pairs (image, label), dicts, or images alone.

    Whatever a dataset draws at random is a function of item and view: the global generators are seeded for each
    reading. See :class:`itrd.data.lazy.Store`.
    """

    items: Any
    title: str
    fixed: bool
    collate: Callable[[list[Any]], Any] | None = None
    encoded: bool = False

    def name(self, row: int) -> str:
        """Return dataset and number."""
        return f"item {row} of {self.title}"

    def raw(self, row: int, view: int) -> Any:
        """Return an item as the dataset gives it."""
        with seeded(view, row):
            return self.items[row]

    def item(self, row: int, view: int) -> tuple[Any, Any]:
        """Return an item's image and label; those of a batch of one where the user collates."""
        raw = self.raw(row, view)
        if self.collate is None:
            return image_and_label(raw, self.name(row))
        with seeded(view, row):
            images, labels = image_and_label(self.collate([raw]), self.name(row))
        return images[0], labels[0]

    def pixels(self, row: int, view: int) -> Tensor:
        """Return an item's image as a tensor (C, H, W)."""
        return as_pixels(self.item(row, view)[0], self.name(row))

    def size(self, row: int) -> tuple[int, int]:
        """Return an image's height and width."""
        height, width = self.pixels(row, 0).shape[1:]
        return height, width

    def check(self, row: int) -> None:
        """Do nothing: a dataset of the user's raises its own errors when it is read."""


def image_and_label(item: Any, name: str) -> tuple[Any, Any]:
    """Return image and label (None: it has none) of what a dataset gives.

    Raises:
        DataError: it is nothing known.
    """
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            raise DataError(
                f"{name} has no {', '.join(_IMAGE_KEYS)}; it has {', '.join(map(str, item))}: rename one"
            )
        return image, next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise DataError(
                f"{name} has {len(item)} parts; a dataset must give (image, label), or images alone"
            )
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def as_pixels(image: Any, name: str) -> Tensor:
    """Turn an image into a tensor (C, H, W): Pillow's and grey ones into uint8 with three channels.

    Raises:
        DataError: it is no image.
    """
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return to_tensor(image)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
        if image.ndim == 3 and image.shape[2] in (1, 3, 4) and image.shape[0] not in (1, 3, 4):
            image = image.permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise DataError(
            f"{name} is a {type(image).__name__}, no image; a dataset must give tensors (C, H, W), arrays or "
            "Pillow images"
        )
    image = image.as_subclass(Tensor)
    if image.ndim == 2:
        image = image.expand(3, -1, -1)
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise DataError(
            f"{name} is {image.dtype} of shape {tuple(image.shape)}; an image must be uint8 or floating-point numbers, "
            "(C, H, W)"
        )
    return image.float() if image.is_floating_point() else image


def _as_label(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0 else value


def _labels_of(items: Any, store: ItemStore) -> list[Any]:
    """Return all labels: as the dataset lists them, if that is what its items say; otherwise from every item."""
    listed = _listed_labels(items)
    if listed is not None and len(listed) == len(items):
        probes = evenly(len(items), _PROBES)
        if all(_as_label(store.item(row, 0)[1]) == listed[row] for row in probes):
            return listed
    return [_as_label(store.item(row, 0)[1]) for row in range(len(items))]


def _listed_labels(items: Any) -> list[Any] | None:
    if isinstance(items, Subset):
        whole = _listed_labels(items.dataset)
        return None if whole is None else [whole[i] for i in items.indices]
    if isinstance(items, TensorDataset):
        return items.tensors[1].tolist() if len(items.tensors) == 2 else None
    for name in ("targets", "labels", "_labels"):
        found = getattr(items, name, None)
        if isinstance(found, (list, tuple, np.ndarray, Tensor)):
            return found.tolist() if isinstance(found, (np.ndarray, Tensor)) else list(found)
    return None


def _is_fixed(items: Any, title: str) -> bool:
    """Whether items are uint8 and equal from one reading to the next, as far as a few of them tell."""
    store = ItemStore(items, title, fixed=False)
    for row in evenly(len(items), _PROBES):
        try:
            first, second = (store.pixels(row, view) for view in (0, 1))
        except DataError:
            return False  # only the user's collate function can make something of it
        if first.dtype != torch.uint8 or not torch.equal(first, second):
            return False
    return True


def _read_in(items: Iterable[Any], title: str, limit: int) -> list[tuple[Tensor, Any]]:
    """Read an iterable dataset once into memory, as far as the limit allows.

    Raises:
        DataError: it needs more.
    """
    kept: list[tuple[Tensor, Any]] = []
    size = 0
    with seeded(0, 0):
        for number, item in enumerate(items):
            image, label = image_and_label(item, f"item {number} of {title}")
            pixels = as_pixels(image, f"item {number} of {title}")
            size += pixels.nbytes
            if size > limit:
                raise DataError(
                    f"{title} can only be iterated, and more than {limit:,} bytes of it do not go into memory; give a "
                    "dataset with __len__ and __getitem__, or a folder of images"
                )
            kept.append((pixels, _as_label(label)))
    return kept

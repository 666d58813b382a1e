"""From what a user calls data to an :class:`itrd.data.datasets.ImageDataset`: any source, one way in.

:func:`open_dataset` finds the images and decides size and augmentation; nothing but headers is read. Then
:func:`itrd.data.resident.bring_in` decodes what fits into memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
from torch import Tensor

from itrd.data import datasets, folders, resident, tables
from itrd.data.datasets import IMAGENET_MEAN, IMAGENET_STD, ImageDataset, Split, rank_in_class
from itrd.data.decode import CorruptImageError
from itrd.data.lazy import LazySplit, evenly
from itrd.data.objects import read_object
from itrd.data.parts import Part, count_classes, in_order_of
from itrd.data.views import (
    POLICIES,
    SMALL,
    AsGiven,
    Crop,
    Own,
    ResizedCrop,
    Strong,
    policy_of,
)
from itrd.errors import DataError, UnknownNameError, UserError
from itrd.typecheck import check_types

LARGEST = 224  # pixels; the default size of photographs
AUGMENTATIONS = ("auto", "none", "crop", "resized_crop", *POLICIES)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read.

    Args:
        image_size: side of the square they are brought to; None to choose it.
        augment: one of :data:`AUGMENTATIONS`, or a function on uint8 images (3, H, W).
        flip: whether training images are mirrored at random; None for the dataset's own habit.
        val_fraction: share of every class that is held out for the test where the data has no test images.
        test_split: name of the split to test on.
        image_column, label_column: of a table.
        resident: ``yes``, ``no``, or ``auto``: whether images are decoded once and kept.
        strict: stop at an image that cannot be decoded, in place of leaving it out.

    Raises:
        UserError: a value that none of these can have.
    """

    image_size: int | None = None
    augment: str | Callable[[Tensor], Tensor] = "auto"
    flip: bool | None = None
    val_fraction: float = 0.2
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    resident: Literal["auto", "yes", "no"] = "auto"
    strict: bool = False

    def __post_init__(self) -> None:
        check_types("a reading of images", get_type_hints(Reading), vars(self))
        if not callable(self.augment) and self.augment not in AUGMENTATIONS:
            raise UnknownNameError("augmentation", str(self.augment), list(AUGMENTATIONS))
        if self.image_size is not None and self.image_size < 8:
            raise UserError(f"image_size must be at least 8, got {self.image_size}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction must be between 0 and 1, got {self.val_fraction}")


def read_dataset(
    source: Any,
    reading: Reading | None = None,
    *,
    root: str | os.PathLike[str] = "data",
    download: bool = False,
    train_subset: int | None = None,
    test_subset: int | None = None,
    train: bool = True,
) -> ImageDataset:
    """Open a dataset, cut it to size, and bring it in; an ImageDataset is not cut.

    Args:
        source: see :func:`open_dataset`.
        reading: how; None for all defaults.
        root: folder of the named datasets.
        download: fetch a named dataset that is not there.
        train_subset, test_subset: number of images, the same number of each class; None for all.
        train: whether the training images are wanted, too; otherwise there will be none.

    Raises:
        DataError: it is not there, or cannot be used.
        UnknownNameError: neither a name nor a path.
    """
    reading = reading or Reading()
    if isinstance(source, ImageDataset) and source.reading is not None:
        if reading not in (source.reading, Reading()):
            raise UserError(
                f"{source.name} was read before with other settings of its images; set them there"
            )
        return source
    data = open_dataset(source, reading, root=root, download=download)
    if not isinstance(source, ImageDataset):
        data = data.subset(train_subset, test_subset)
        if not train:
            data = replace(data, train=data.train.take(np.empty(0, np.int64)))
    return resident.bring_in(data, reading)


def open_dataset(
    source: Any, reading: Reading, *, root: str | os.PathLike[str] = "data", download: bool = False
) -> ImageDataset:
    """Find a dataset and decide how it is read.

    Args:
        source: an ImageDataset; a name of :func:`itrd.list_datasets`; ``hf:ORG/NAME``; a path, see
            :mod:`itrd.data.folders` and :mod:`itrd.data.tables`; or an object, see :mod:`itrd.data.objects`.
        reading: how.
        root: folder of the named datasets.
        download: fetch a named dataset that is not there.

    Raises:
        DataError: it is not there, or cannot be used.
        UnknownNameError: neither a name nor a path.
    """
    if isinstance(source, str) and source in datasets.list_datasets():
        _check_effect(source, reading)
        source = datasets.load_dataset(source, root, download=download)
    if isinstance(source, ImageDataset):
        _check_effect(source.name, reading)
        return _read_otherwise(source, reading)
    columns = reading.image_column, reading.label_column
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        train, test = _from_path(name, columns, reading.test_split)
    else:
        name, train, test = read_object(source, columns, reading.test_split, resident.RESIDENT_LIMIT)
    return _assemble(name, train, test, reading)


def whole_for_the_test(data: ImageDataset) -> ImageDataset:
    """Undo the division of a dataset that has no test images: all of them are for the test.

    Args:
        data: of :func:`open_dataset`, before its images are brought in.
    """
    assert isinstance(data.train, LazySplit)
    assert isinstance(data.test, LazySplit)
    facts = {key: value for key, value in data.facts.items() if key not in ("val_fraction", "undivided")}
    rows = np.concatenate([data.train.rows, data.test.rows])
    labels = np.concatenate([data.train.labels, data.test.labels])
    order = np.argsort(rows)
    test = replace(data.test, rows=rows[order], labels=labels[order], source=data.facts["undivided"])
    return replace(data, train=data.train.take(np.empty(0, np.int64)), test=test, facts=facts)


def _from_path(name: str, columns: tables.Columns, test_split: str | None) -> tuple[Part | None, Part | None]:
    if name.startswith("hf:"):
        return tables.read_hub(name[3:], columns, test_split)
    path = Path(name).expanduser()
    if path.is_dir():
        if tables.is_saved(path):
            return tables.read_saved(path, columns, test_split)
        if next(path.rglob("*.parquet"), None) is not None:
            return tables.read_parquet(path, columns, test_split)
        if any(columns):
            raise UserError(f"{name} holds image files and no table; leave image_column and label_column out")
        return folders.read_folder(path, test_split)
    if path.suffix == ".parquet" and path.is_file():
        return tables.read_parquet(path, columns, test_split)
    if path.exists():
        raise DataError(f"{name} is no folder and no .parquet file; give the folder that holds the images")
    if "/" in name or name.startswith("."):
        raise DataError(f"there is no folder {name}; correct the path")
    known = datasets.list_datasets()
    raise UnknownNameError(
        "dataset",
        name,
        known,
        hint=f"known: {', '.join(known)}; or a folder of images, a .parquet file, hf:ORG/NAME",
    )


# --- an ImageDataset of two parts ------------------------------------------------------------------------


def _assemble(name: str, train: Part | None, test: Part | None, reading: Reading) -> ImageDataset:
    alone = train is None  # the test images
    if train is None:
        assert test is not None
        if not test.labelled:
            raise DataError(f"{test.title} has no labels to test with; choose another split with test_split")
        train, test = test, None
    facts: dict[str, Any] = dict(train.facts)
    classes, names = _classes(train, test)
    if names:
        facts["class_names"] = list(names)
    whole = _split(train, train.labels)
    if test is not None and (test.labelled or train.labelled):
        splits = whole, _split(test, in_order_of(test, names, classes))
        facts["test_split"] = test.title
    elif alone:
        splits = whole.take(np.empty(0, np.int64)), whole
        facts["test_split"] = train.title
    elif train.labelled:
        splits = _held_out(whole, reading.val_fraction, train.title)
        facts |= {"val_fraction": reading.val_fraction, "undivided": train.source}
    else:
        splits = whole, whole.take(np.empty(0, np.int64))
    size = reading.image_size
    if size is None and train.store.fixed:
        size = _usual_size(whole)
    mean, std = _usual_statistics(whole, splits[1])
    data = ImageDataset(
        name=name,
        num_classes=classes,
        class_names=names or tuple(map(str, range(classes))),
        train=splits[0],
        test=splits[1],
        mean=mean,
        std=std,
        padding=0,
        flip=False,
        image_size=size,
        facts=facts,
    )
    if not train.store.fixed:
        return _augmented_by_itself(data, reading)
    assert size is not None
    usual = "crop" if size <= SMALL else "resized_crop"
    return _augmented(replace(data, padding=max(1, size // 8), flip=True), size, usual, reading)


def _classes(train: Part, test: Part | None) -> tuple[int, tuple[str, ...] | None]:
    """Return number and names of the classes; of unlabelled training images those of the test images, or none."""
    if train.labelled:
        if test is not None and not test.labelled:
            raise DataError(f"{test.title} has no labels to test with; choose another split with test_split")
        return count_classes(train, test), train.class_names
    if test is None or not test.labelled:
        return 0, None
    return count_classes(test), test.class_names


def _split(part: Part, labels: np.ndarray) -> LazySplit:
    return LazySplit(part.store, np.arange(len(part)), labels, part.source, part.checked)


def _held_out(split: LazySplit, fraction: float, title: str) -> tuple[LazySplit, LazySplit]:
    """Part a split in two, class by class: of n images, round(fraction n), but at least one, are for the test.

    The choice depends on the labels alone, not on the run's seed: all runs on this data are tested on the same images.
    """
    counts = np.bincount(split.labels)
    few = np.flatnonzero(counts == 1)
    if len(few):
        raise DataError(
            f"class {few[0]} of {title} has one image, so none can be held out for the test; add images, remove the "
            "class, or give test images in a folder called val"
        )
    rank, wanted = rank_in_class(split.labels, 0), np.maximum(1, np.round(counts * fraction))
    test = rank < wanted[split.labels]
    return split.take(np.flatnonzero(~test)), split.take(np.flatnonzero(test))


def _usual_size(split: LazySplit) -> int:
    """Choose a size from the headers of a few images: theirs if they are small, otherwise the usual 224, or below."""
    sizes = []
    for index in evenly(len(split)):
        with suppress(CorruptImageError):  # noticed, and counted, when it is decoded
            sizes.append(min(split.store.size(int(split.rows[index]))))
    if not sizes:
        raise DataError(f"none of the first images can be decoded ({split.name(0)}); replace them")
    middle = int(np.median(sizes))
    return middle if middle <= SMALL else min(LARGEST, middle // 32 * 32)


def _usual_statistics(train: LazySplit, test: LazySplit) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation: ImageNet's for photographs, none for floating-point images, which come as they are.

    Raises:
        DataError: the training images are of one kind and the test images of another.
    """
    if train.store.encoded:
        return IMAGENET_MEAN, IMAGENET_STD
    first = train.read(0, 0)
    for other in (test.read(i, 0) for i in range(min(1, len(test)))):
        if other.is_floating_point() != first.is_floating_point() or len(other) != len(first):
            raise DataError(
                f"training images are {first.dtype} with {len(first)} channels and test images {other.dtype} with "
                f"{len(other)}; give both of one kind"
            )
    channels = len(first)
    if first.is_floating_point():
        return (0.0,) * channels, (1.0,) * channels
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)


# --- augmentation ----------------------------------------------------------------------------------------


def _augmented_by_itself(data: ImageDataset, reading: Reading) -> ImageDataset:
    """Take images as a dataset of the user's returns them: at random, or as floating-point numbers."""
    if reading.augment not in ("auto", "none"):
        raise UserError(
            "an augmentation needs plain uint8 images, and this dataset returns them augmented or as floating-point "
            "numbers; leave its transform out, or augment"
        )
    return replace(data, augmentation=AsGiven(data.image_size))


def _augmented(data: ImageDataset, size: int, usual: str, reading: Reading) -> ImageDataset:
    """Choose how training images of side ``size`` are augmented; ``usual`` says how, crop or resized_crop, if asked not
    to choose. Crops are described by ``padding`` and ``flip``, as for datasets in memory.
    """
    flip = data.flip if reading.flip is None else reading.flip
    data = replace(data, flip=flip)
    if callable(reading.augment):
        return replace(data, augmentation=Own(size, reading.augment))
    name = usual if reading.augment == "auto" else reading.augment
    if name == "none":
        return replace(data, padding=0, flip=False)
    if name == "crop":
        return data
    if name == "resized_crop":
        return replace(data, augmentation=ResizedCrop(size, flip))
    geometry = Crop(size, data.padding, flip) if usual == "crop" else ResizedCrop(size, flip)
    return replace(data, augmentation=Strong(geometry, policy_of(name)))


def _check_effect(name: str, reading: Reading) -> None:
    """Refuse what decides about images that are not divided or labelled, of a dataset that is."""
    for setting in ("val_fraction", "test_split", "image_column", "label_column"):
        if getattr(reading, setting) != getattr(Reading(), setting):
            raise UserError(
                f"{setting} has no effect on {name}, whose training and test images are what they are; leave it out"
            )


def _read_otherwise(data: ImageDataset, reading: Reading) -> ImageDataset:
    """Apply what a reading asks for to a dataset that has its images in memory."""
    assert isinstance(data.train, Split)
    own = data.train.images.shape[2]
    size = reading.image_size or own
    if size == own and reading.flip in (None, data.flip) and reading.augment == "auto":
        return data
    if size != own:
        data = replace(data, image_size=size, padding=data.padding * size // own)
    return _augmented(replace(data, facts={"kind": "images in memory"}), size, "crop", reading)

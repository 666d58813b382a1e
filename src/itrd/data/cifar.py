"""CIFAR-100 and CIFAR-10, read from the folders that the official archives unpack to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itrd.data import trust
from itrd.data.datasets import ImageDataset, Split
from itrd.data.pickles import read_pickle
from itrd.errors import DataError

MAX_FILE = 1 << 28  # bytes; the largest official file has 155 million
PADDING = 4  # pixels, before a random crop
_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Layout:
    """Where a dataset's files are, what their keys are, and how its images are normalised."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels_key: bytes
    names_key: bytes
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def files(self) -> tuple[str, ...]:
        """The files that must be there."""
        return (*self.train, self.test, self.meta)


LAYOUTS = {
    "cifar100": Layout(
        name="cifar100",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
        classes=100,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
    "cifar10": Layout(
        name="cifar10",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels_key=b"labels",
        names_key=b"label_names",
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
}


def is_published(data: ImageDataset) -> bool:
    """Whether this is the whole of CIFAR-100 as the published results have it: normalised, cropped and mirrored so."""
    layout = LAYOUTS["cifar100"]
    mean, std = tuple(data.mean), tuple(data.std)
    return (
        (data.name, len(data.train), len(data.test)) == (layout.name, 50_000, 10_000)
        and (mean, std, data.padding, data.flip) == (layout.mean, layout.std, PADDING, True)
        and data.augmentation is None
        and data.image_size is None
    )


def find_folder(layout: Layout, root: Path) -> Path | None:
    """Return the dataset's folder: the one in ``root``, or ``root`` itself; None if neither is."""
    if (root / layout.folder).is_dir():
        return root / layout.folder
    return root if (root / layout.meta).is_file() and (root / layout.test).is_file() else None


def load(name: str, root: Path) -> ImageDataset:
    """Read ``cifar100`` or ``cifar10``; the sizes are what the files hold.

    Raises:
        DataError: a file is missing, malformed, or altered since it was first read.
    """
    layout = LAYOUTS[name]
    folder = find_folder(layout, root)
    if folder is None:
        raise DataError(
            f"{name} is not in {root} (no {layout.folder} there): get it with {trust.download_command(name)}"
        )
    reader = _Folder(name, folder)
    class_names = _class_names(layout, reader)
    parts = [_images_and_labels(layout, reader, file) for file in layout.train]
    train = parts[0] if len(parts) == 1 else tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    test = _images_and_labels(layout, reader, layout.test)
    reader.remember()
    return ImageDataset(
        name=name,
        num_classes=layout.classes,
        class_names=class_names,
        train=Split(*train),
        test=Split(*test),
        mean=layout.mean,
        std=layout.std,
        padding=PADDING,
        flip=True,
    )


class _Folder:
    """Reads the files of one folder and keeps their checksums."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.record = trust.recorded(folder)
        self.seen: dict[str, str] = {}

    def read(self, file: str) -> dict[bytes, Any]:
        path = self.folder / file
        get_it = f"get a good one with {trust.download_command(self.name)}"
        try:
            if not path.is_file():
                raise DataError(f"{path} is missing: get it with {trust.download_command(self.name)}")
            if path.stat().st_size > MAX_FILE:
                raise DataError(f"{path} is larger than any {self.name} file: {get_it}")
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        self.seen[file] = hashlib.sha256(raw).hexdigest()
        trust.check(self.name, path, self.seen[file], self.record)
        try:
            return read_pickle(raw, str(path))
        except DataError as error:
            raise DataError(f"{error}; {get_it}") from None

    def problem(self, file: str, what: str) -> DataError:
        return DataError(
            f"{self.folder / file} is no {self.name} file: {what}; "
            f"get a good one with {trust.download_command(self.name)}"
        )

    def remember(self) -> None:
        if not self.seen.keys() <= self.record.keys():
            trust.remember(self.folder, self.record | self.seen)


def _class_names(layout: Layout, reader: _Folder) -> tuple[str, ...]:
    names = reader.read(layout.meta).get(layout.names_key)
    if type(names) is not list or any(type(name) is not bytes or not name.isascii() for name in names):
        raise reader.problem(layout.meta, f"no list of names under {layout.names_key.decode()!r}")
    if len(names) != layout.classes:
        raise reader.problem(layout.meta, f"{len(names)} class names in place of {layout.classes}")
    return tuple(name.decode("ascii") for name in names)


def _images_and_labels(
    layout: Layout, reader: _Folder, file: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (N, 3, 32, 32) and labels (N,) of one file."""
    content = reader.read(file)
    images, labels = content.get(b"data"), content.get(layout.labels_key)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
        raise reader.problem(file, "its 'data' is no uint8 array of 3072 columns")
    if type(labels) is not list or any(type(label) is not int for label in labels):
        raise reader.problem(file, f"its {layout.labels_key.decode()!r} is no list of whole numbers")
    if len(labels) != len(images):
        raise reader.problem(file, f"{len(images)} images but {len(labels)} labels")
    if not 0 <= min(labels) <= max(labels) < layout.classes:
        raise reader.problem(file, f"labels lie outside 0..{layout.classes - 1}")
    # The array is a read-only view of the file's bytes: copy it, so that those can go.
    return images.reshape(-1, *_SHAPE).copy(order="C"), np.array(labels, dtype=np.int64)

"""What a dataset is, and the one table of the datasets there are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from itrd.errors import DataError, UnknownNameError

if TYPE_CHECKING:  # importing this module must stay cheap: the command line does it at every start
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Self

    from itrd.data.opening import Reading
    from itrd.data.views import Augmentation


@dataclass(frozen=True)
class DatasetInfo:
    """What there is to know about a dataset without reading it."""

    name: str
    title: str
    classes: int
    train_size: int
    test_size: int
    image_shape: tuple[int, int, int]  # channels, height, width
    licence: str
    citation: str
    source: str  # how it is obtained


class AnySplit(Protocol):
    """One split, decoded (:class:`Split`) or to be read image by image (:class:`itrd.data.lazy.LazySplit`).

    Attributes:
        labels: int64 (N,); -1 throughout where the images have none.
    """

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels, int64 (N,)."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def read(self, index: int, view: int) -> Tensor:
        """Return one image's pixels (C, H, W): uint8, or floating-point where they are used as they are."""
        ...

    def take(self, chosen: NDArray[np.int64]) -> Self:
        """Return the split of these images, in this order."""
        ...

    def add_to(self, digest: Any) -> None:
        """Feed a hash with what the split is."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells the split from others."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """One split: images uint8 (N, C, H, W), C-contiguous, and labels int64 (N,).

    ``source`` is the fingerprint of the files that the images were decoded from; None where the pixels themselves say
    what the split is.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: str | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != "uint8" or images.ndim != 4 or not images.flags.c_contiguous:
            raise DataError(
                f"images must be a contiguous uint8 array (N, C, H, W), not {images.dtype} {images.shape}"
            )
        if labels.dtype != "int64" or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels must be int64 ({len(images)},), one an image, not {labels.dtype} {labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, view: int) -> Tensor:
        """Return one image's pixels, uint8 (C, H, W); the view makes no difference to what is stored."""
        import torch

        del view
        return torch.tensor(self.images[index])  # a copy: the array may be read-only

    def take(self, chosen: NDArray[np.int64]) -> Split:
        """Return the split of these images, in this order."""
        import numpy as np

        source = self.source and choice_of(self.source, chosen)
        return Split(np.ascontiguousarray(self.images[chosen]), self.labels[chosen], source)

    def add_to(self, digest: Any) -> None:
        """Feed a hash with the source, or else with shape, pixels and labels."""
        if self.source is not None:
            digest.update(self.source.encode())
            return
        digest.update(repr(self.images.shape).encode())
        digest.update(self.images.data)
        digest.update(self.labels.astype("<i8").tobytes())  # same bytes on every machine

    @property
    def fingerprint(self) -> str:
        """The source, or else the sha256 (hex) of shape, pixels and labels."""
        if self.source is not None:
            return self.source
        digest = hashlib.sha256()
        self.add_to(digest)
        return digest.hexdigest()


def choice_of(source: str, chosen: NDArray[np.int64]) -> str:
    """Return the fingerprint of some images of a source, in this order."""
    return hashlib.sha256(source.encode() + chosen.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Two splits of labelled images and how they are normalised and augmented.

    The labels of a split are all there or all -1. Test images without labels are left out: nothing can be measured on
    them.

    ``mean`` and ``std`` are per channel, for pixels scaled to [0, 1]. ``padding`` (pixels on every
    side, before a random crop) and ``flip`` say what augmentation the dataset is trained with.
    ``normalisation`` says whose ``mean`` and ``std`` they are: the dataset's own, or ImageNet's.

    ``image_size`` is the side of the square that images are brought to when they are read; None where they come in
    the size they are used in. ``augmentation`` replaces padding and flip where it is not None. ``facts`` go into the
    record of a run: how the data was read; ``reading`` is what was asked for then.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    train: AnySplit
    test: AnySplit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool
    normalisation: str = "dataset"
    image_size: int | None = None
    augmentation: Augmentation | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    reading: Reading | None = None

    def __post_init__(self) -> None:
        for which, split in (("training", self.train), ("test", self.test)):
            if len(split) and int(split.labels.max()) >= max(self.num_classes, 0):
                raise DataError(
                    f"a {which} label of {self.name} is {int(split.labels.max())}, and there are {self.num_classes} "
                    f"classes, numbered from 0; set num_classes to at least {int(split.labels.max()) + 1}"
                )
            check_labels(split.labels, f"{self.name} ({which})")
        if (self.test.labels == -1).any():
            import numpy as np

            object.__setattr__(self, "test", self.test.take(np.empty(0, np.int64)))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) over both splits: shapes, pixels and labels; or their source and the size to come."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            if self.image_size is None:
                split.add_to(digest)
            else:  # whether it was brought to its size already makes no difference
                digest.update(split.fingerprint.encode())
        if self.image_size is not None:
            digest.update(f"image size {self.image_size}".encode())
        return digest.hexdigest()

    @property
    def labelled(self) -> bool:
        """Whether the training images have labels."""
        return bool((self.train.labels >= 0).all())

    def normalised(self, normalisation: str) -> ImageDataset:
        """Return the dataset with the mean and deviation of ``dataset`` (its own) or ``imagenet``.

        Raises:
            DataError: no such normalisation, not for these images, or the dataset's own are gone already.
        """
        if normalisation == self.normalisation:
            return self
        if normalisation != "imagenet" or len(self.mean) != len(IMAGENET_MEAN):
            raise DataError(
                f"{self.name} (normalisation {self.normalisation}) cannot have the normalisation {normalisation}; "
                "load it anew, and choose dataset, or, for images of three channels, imagenet"
            )
        return replace(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, normalisation=normalisation)

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> ImageDataset:
        """Return the dataset with ``train`` and ``test`` images left in its splits (None: all).

        Classes are balanced to within one image where they have enough. The choice depends on the
        seed and the labels only, and a smaller subset lies within every larger one of that seed.
        The images keep their order. The name tells: ``cifar100[train=2000]``.

        Raises:
            DataError: a split does not hold that many images, or the number is not positive.
        """
        if train is None and test is None:
            return self
        sizes = [f"{key}={size}" for key, size in (("train", train), ("test", test)) if size is not None]
        seeds = [f"seed={seed}"] if seed else []
        return replace(
            self,
            name=f"{self.name}[{','.join(sizes + seeds)}]",
            train=self._choose("train", train, seed),
            test=self._choose("test", test, seed),
        )

    def _choose(self, which: str, size: int | None, seed: int) -> AnySplit:
        import numpy as np

        split: AnySplit = getattr(self, which)
        if size is None:
            return split
        if not 1 <= size <= len(split):
            raise DataError(
                f"cannot take {size} {which} images of {self.name}: choose between 1 and {len(split)}"
            )
        rank = rank_in_class(split.labels, seed)
        chosen = np.sort(np.lexsort((split.labels, rank))[:size])  # round robin over the classes
        return split.take(chosen)


def check_labels(labels: NDArray[np.int64], title: str) -> None:
    """Refuse labels (N,) that are neither all there nor all -1.

    Raises:
        DataError: one is below -1, or some are -1.
    """
    if (labels < -1).any():
        raise DataError(
            f"{title} has the label {labels.min()}; labels are 0, 1, 2, and so on, and -1 for none"
        )
    count = int((labels == -1).sum())
    if 0 < count < len(labels):
        raise DataError(
            f"{count} of {len(labels)} images of {title} have the label -1 (none); give each one, or none"
        )


def rank_in_class(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return every image's place (N,), from 0, in a random order of its class that depends on the seed alone."""
    import numpy as np

    # The raw output of a bit generator never changes between numpy versions; shuffles may.
    keys = np.random.PCG64(seed).random_raw(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members[np.argsort(keys[members], kind="stable")]] = np.arange(len(members))
    return rank


# Of ImageNet's training images, red, green, blue; as torchvision's models use them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_KRIZHEVSKY = (
    "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, "
    "University of Toronto, 2009"
)

# name -> what it is, and "module:function" of a loader (name, root) -> ImageDataset
_TABLE: dict[str, tuple[DatasetInfo, str]] = {
    info.name: (info, loader)
    for info, loader in (
        (
            DatasetInfo(
                name="cifar100",
                title="CIFAR-100, 100 classes of small photographs",
                classes=100,
                train_size=50_000,
                test_size=10_000,
                image_shape=(3, 32, 32),
                licence="none stated by its authors; cite the report",
                citation=_KRIZHEVSKY,
                source="itrd datasets --download cifar100 (169 MB)",
            ),
            "itrd.data.cifar:load",
        ),
        (
            DatasetInfo(
                name="cifar10",
                title="CIFAR-10, 10 classes of small photographs",
                classes=10,
                train_size=50_000,
                test_size=10_000,
                image_shape=(3, 32, 32),
                licence="none stated by its authors; cite the report",
                citation=_KRIZHEVSKY,
                source="itrd datasets --download cifar10 (170 MB)",
            ),
            "itrd.data.cifar:load",
        ),
        (
            DatasetInfo(
                name="digits",
                title="handwritten digits, 8x8 enlarged to 32x32 with three equal channels",
                classes=10,
                train_size=1_000,
                test_size=797,
                image_shape=(3, 32, 32),
                licence="CC BY 4.0",
                citation=(
                    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, "
                    "UCI Machine Learning Repository, 1998"
                ),
                source="comes with scikit-learn; nothing to download",
            ),
            "itrd.data.digits:load",
        ),
    )
}


def list_datasets() -> list[str]:
    """Return the names that :func:`load_dataset` knows."""
    return list(_TABLE)


def describe_dataset(name: str) -> DatasetInfo:
    """Return what is known about a dataset without reading it.

    Raises:
        UnknownNameError: there is no such dataset.
    """
    if name not in _TABLE:
        raise UnknownNameError("dataset", name, _TABLE)
    return _TABLE[name][0]


def load_dataset(name: str, root: str | os.PathLike[str] = "data", *, download: bool = False) -> ImageDataset:
    """Read a dataset from the folder ``root``.

    Args:
        name: one of :func:`list_datasets`.
        root: folder that holds the datasets; ``digits`` comes with scikit-learn and needs none.
        download: fetch it first where it is missing.

    Returns:
        Training and test images, uint8 (N, 3, H, W), with labels, int64 (N,), and what their normalisation and
        augmentation are.

    Raises:
        UnknownNameError: there is no such dataset.
        DataError: it is missing, damaged, or altered since it was first read.
    """
    describe_dataset(name)
    module, function = _TABLE[name][1].split(":")
    if download:
        from itrd.data.cifar import LAYOUTS, find_folder

        if name in LAYOUTS and find_folder(LAYOUTS[name], Path(root)) is None:
            from itrd.data.download import download_dataset

            download_dataset(name, root)
    dataset: ImageDataset = getattr(import_module(module), function)(name, Path(root))
    return dataset

"""One half of a dataset as it is found: images, and labels as they are written there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itrd.data.datasets import check_labels
from itrd.data.lazy import Store
from itrd.errors import DataError

_SHOWN = 5  # names in an error


@dataclass(frozen=True, eq=False)
class Part:
    """Images with labels of their own numbering, before they are brought together with the other half.

    Attributes:
        store: the images.
        labels: int64 (N,), places in ``class_names``; -1 throughout where there are none.
        class_names: in the order of the labels; None where the labels are bare numbers.
        source: fingerprint.
        title: what errors and records call it.
        facts: for the record of a run.
        checked: file that remembers which images could not be decoded; None for nowhere.
    """

    store: Store
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    source: str
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    checked: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether it has labels."""
        return len(self.labels) > 0 and bool((self.labels >= 0).all())


def as_labels(
    values: Sequence[Any] | NDArray[Any], title: str
) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Return labels as numbers, and the names they stand for where they were words.

    Raises:
        DataError: they are neither whole numbers nor words, or only some images have one.
    """
    if len(values) and all(isinstance(value, str) for value in values):
        names, labels = np.unique(np.asarray(values), return_inverse=True)
        return labels.astype(np.int64), tuple(map(str, names))
    missing = sum(value is None for value in values)
    if missing == len(values) > 0:
        return np.full(len(values), -1, dtype=np.int64), None
    if missing:
        raise DataError(f"{missing} of {len(values)} images of {title} have no label; give each one, or none")
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"the labels of {title} must be whole numbers or words, one an image; these are {array.dtype} of shape "
            f"{array.shape}"
        )
    labels = array.astype(np.int64)
    check_labels(labels, title)
    return labels, None


def count_classes(part: Part, other: Part | None = None) -> int:
    """Return the number of classes of a labelled part.

    Args:
        part: usually of training images.
        other: a labelled part in the same numbering; where classes have numbers alone, either may lack some.

    Raises:
        DataError: there is only one, numbers are left out, or a label has no name.
    """
    present = np.unique(part.labels)
    if part.class_names is None and other is not None and other.class_names is None and len(present) > 1:
        present = np.union1d(present, other.labels)
    if part.class_names is not None:
        if present[-1] >= len(part.class_names):
            raise DataError(
                f"{part.title} has the label {present[-1]}, but names for 0 to {len(part.class_names) - 1} only; "
                "correct the labels, or the list of names"
            )
    elif len(present) != present[-1] + 1:
        raise DataError(
            f"the labels of {part.title} are {_listed(present)}, which leaves numbers out; number the "
            f"{len(present)} classes from 0 to {len(present) - 1}"
        )
    if len(present) < 2:
        raise DataError(
            f"{part.title} has images of one class only; classification needs two. For images without labels, give "
            "the folder, or a dataset, that holds them without a class"
        )
    return len(part.class_names or present)


def in_order_of(part: Part, names: tuple[str, ...] | None, classes: int) -> NDArray[np.int64]:
    """Return the labels of a test part in the numbering of the training part, whose names are given.

    Raises:
        DataError: it has classes that the training part lacks.
    """
    if not part.labelled:
        return part.labels
    if names is not None and part.class_names is not None:
        place = {name: i for i, name in enumerate(names)}
        strange = [name for name in part.class_names if name not in place]
        if strange:
            raise DataError(
                f"{part.title} has classes that the training images lack: {_listed(strange)} (those have "
                f"{_listed(names)}); rename or remove them"
            )
        return np.array([place[name] for name in part.class_names], dtype=np.int64)[part.labels]
    if part.labels.max() >= classes:
        raise DataError(
            f"{part.title} has the label {part.labels.max()}, but the training images only 0 to {classes - 1}; "
            "number both alike"
        )
    return part.labels


def _listed(items: Sequence[Any] | NDArray[Any]) -> str:
    shown = ", ".join(map(str, items[:_SHOWN]))
    return f"{shown}, ..." if len(items) > _SHOWN else shown

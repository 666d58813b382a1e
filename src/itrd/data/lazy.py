"""Images that are read when they are needed: where they are kept, and a split of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itrd.data import decode
from itrd.data.datasets import choice_of


class Store(Protocol):
    """Where images are kept."""

    @property
    def encoded(self) -> bool:
        """Whether images are files that this package decodes, by several threads at once, to three channels."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether every reading of an image gives the same uint8 pixels."""
        ...

    def name(self, row: int) -> str:
        """Return what an error calls an image."""
        ...

    def pixels(self, row: int, view: int) -> Tensor:
        """Return an image, (C, H, W); see :meth:`itrd.data.datasets.AnySplit.read`."""
        ...

    def size(self, row: int) -> tuple[int, int]:
        """Return an image's height and width."""
        ...

    def check(self, row: int) -> None:
        """Raise :class:`itrd.data.decode.CorruptImageError` if an image cannot be decoded."""
        ...


@dataclass(frozen=True)
class FileStore:
    """Image files in a folder; ``paths`` are relative to ``root``."""

    root: Path
    paths: Sequence[str]
    encoded: bool = True
    fixed: bool = True

    def name(self, row: int) -> str:
        """Return the file's path."""
        return str(self.root / self.paths[row])

    def pixels(self, row: int, view: int) -> Tensor:
        """Decode a file."""
        return decode.decode(self.root / self.paths[row], self.name(row))

    def size(self, row: int) -> tuple[int, int]:
        """Read a file's header."""
        return decode.size_of(self.root / self.paths[row], self.name(row))

    def check(self, row: int) -> None:
        """Decode a file to see whether it can be."""
        decode.check(self.root / self.paths[row], self.name(row))


@dataclass(frozen=True)
class ColumnStore:
    """Encoded images in a column of a table: ``column[row]`` is bytes, a path, or a dict with ``bytes`` or ``path``."""

    column: Any
    title: str
    encoded: bool = True
    fixed: bool = True

    def name(self, row: int) -> str:
        """Return table and row."""
        return f"row {row} of {self.title}"

    def content(self, row: int) -> Path | bytes:
        """Return an image's bytes, or the file that holds them.

        Raises:
            CorruptImageError: there is nothing.
        """
        value = self.column[row]
        value = value.as_py() if hasattr(value, "as_py") else value
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            if not Path(value).is_file():  # a device or a pipe could be waited for without end
                raise decode.CorruptImageError(f"{self.name(row)} names {value}, which is no file")
            return Path(value)
        if not isinstance(value, bytes):
            raise decode.CorruptImageError(f"{self.name(row)} holds no image; remove it")
        return value

    def pixels(self, row: int, view: int) -> Tensor:
        """Decode an image."""
        return decode.decode(self.content(row), self.name(row))

    def size(self, row: int) -> tuple[int, int]:
        """Read an image's header."""
        return decode.size_of(self.content(row), self.name(row))

    def check(self, row: int) -> None:
        """Decode an image to see whether it can be."""
        decode.check(self.content(row), self.name(row))


@dataclass(frozen=True, eq=False)
class LazySplit:
    """One split of images that are read one by one.

    Attributes:
        store: where they are.
        rows: int64 (N,), their places there.
        labels: int64 (N,); -1 throughout where there are none.
        source: fingerprint of what is read.
        checked: file that remembers which images cannot be decoded; None for nowhere.
    """

    store: Store
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    source: str
    checked: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return what an error calls an image."""
        return self.store.name(int(self.rows[index]))

    def read(self, index: int, view: int) -> Tensor:
        """Return one image's pixels (C, H, W).

        Raises:
            CorruptImageError: it cannot be decoded.
        """
        return self.store.pixels(int(self.rows[index]), view)

    def is_corrupt(self, index: int) -> bool:
        """Whether an image cannot be decoded."""
        try:
            self.store.check(int(self.rows[index]))
        except decode.CorruptImageError:
            return True
        return False

    @property
    def fingerprint(self) -> str:
        """The source."""
        return self.source

    def take(self, chosen: NDArray[np.int64]) -> LazySplit:
        """Return the split of these images, in this order."""
        return replace(
            self, rows=self.rows[chosen], labels=self.labels[chosen], source=choice_of(self.source, chosen)
        )

    def add_to(self, digest: Any) -> None:
        """Feed a hash with the source."""
        digest.update(self.source.encode())


PROBES = 256


def evenly(count: int, most: int = PROBES) -> list[int]:
    """Return up to ``most`` of the numbers below ``count``, evenly spread."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, most)).round())] if count else []


def sampled_fingerprint(labels: NDArray[np.int64], content: Callable[[int], bytes]) -> str:
    """Return a sha256 (hex) over all labels and the content of up to 256 images, evenly spread.

    For tables and for datasets of the user's, whose whole content would take an epoch to read.
    """
    digest = hashlib.sha256(labels.astype("<i8").tobytes())
    for row in evenly(len(labels)):
        digest.update(content(row))
    return digest.hexdigest()

"""Images in tables: Parquet files, and datasets of the Hugging Face library, on its hub, on disk or in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from itrd.data.decode import CorruptImageError
from itrd.data.folders import TESTS, TRAIN
from itrd.data.lazy import ColumnStore, sampled_fingerprint
from itrd.data.parts import Part, as_labels
from itrd.errors import DataError, first_line
from itrd.extras import require

PARQUET_LIMIT = 8 << 30  # bytes: Parquet's image column is held in memory, encoded
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "pixel_values")  # usual names, first choice first
_LABELS = ("label", "labels", "fine_label", "class", "cls", "target", "category")

Columns = tuple[str | None, str | None]  # the image's and the label's, as the user named them


def read_parquet(path: Path, columns: Columns, test_split: str | None) -> tuple[Part, Part | None]:
    """Read Parquet files as the Hugging Face library writes them: ``train-*.parquet``, ``test-*.parquet``, ...

    A single file is one part. In a folder, a file belongs to the split that its name, or its folder's, begins with;
    files of no split are for training.

    Raises:
        DataError: no rows, no such columns, too large to be held in memory, or no Parquet file at all.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    size = sum(file.stat().st_size for file in files)
    if size > PARQUET_LIMIT:
        raise DataError(
            f"{path} holds {size:,} bytes of Parquet, more than the {PARQUET_LIMIT:,} that are read into memory; "
            "write it with the datasets library's save_to_disk and give that folder"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(TRAIN if path.is_file() else _split_of(file.relative_to(path)), []).append(file)
    train, test = _two(splits, str(path), test_split)

    def part(name: str) -> Part:
        title = str(path) if len(splits) == 1 else f"{path} ({name})"
        return _parquet_part(splits[name], title, columns)

    return part(train), None if test is None else part(test)


def _split_of(file: Path) -> str:
    for piece in (file.name, *reversed(file.parts[:-1])):
        for name in (TRAIN, *TESTS):
            if piece == name or piece.startswith((f"{name}-", f"{name}.", f"{name}_")):
                return name
    return TRAIN


def _parquet_part(files: Sequence[Path], title: str, columns: Columns) -> Part:
    pyarrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    try:
        schemas = [parquet.read_schema(file) for file in files]
        kinds = {name: _arrow_kind(pyarrow, schemas[0].field(name).type) for name in schemas[0].names}
        image, label = find_columns(kinds, columns, title)
        wanted = [image] if label is None else [image, label]
        table = pyarrow.concat_tables([parquet.read_table(file, columns=wanted) for file in files])
    except (pyarrow.ArrowException, OSError) as error:
        reason = first_line(error)[:200]
        raise DataError(f"cannot read {title} as Parquet: {reason}; write it anew, or remove it") from None
    values = None if label is None else table.column(label).to_pylist()
    names = None if label is None else _names_in(schemas[0].metadata, label)
    return _part(table.column(image), len(table), values, names, title, "Parquet")


def _arrow_kind(pyarrow: Any, kind: Any) -> str:
    """Say what a column may be: image, label or other."""
    types = pyarrow.types
    if types.is_struct(kind):
        return "image" if any(kind.field(i).name == "bytes" for i in range(kind.num_fields)) else "other"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "image"
    return (
        "label" if types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind) else "other"
    )


def _names_in(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """Return the class names that the Hugging Face library writes beside a column."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return None


def read_hub(name: str, columns: Columns, test_split: str | None) -> tuple[Part, Part | None]:
    """Load ``ORG/NAME`` or ``ORG/NAME:CONFIG`` with the datasets library, which keeps it in its cache.

    Raises:
        DataError: it cannot be loaded.
        UserError: the library is not installed.
    """
    datasets = require("datasets", "datasets")
    repository, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, config or None)
    except Exception as error:  # of the library, of the network, of the hub
        reason = first_line(error)[:300]
        raise DataError(f"cannot load hf:{name}: {reason}; check the name and the connection") from None
    return read_hf(loaded, f"hf:{name}", columns, test_split)


def read_saved(folder: Path, columns: Columns, test_split: str | None) -> tuple[Part, Part | None]:
    """Open a folder that the datasets library's ``save_to_disk`` wrote; its files are mapped, not read.

    Raises:
        DataError: it cannot be opened.
        UserError: the library is not installed.
    """
    datasets = require("datasets", "datasets")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # of the library, of Arrow, of JSON
        reason = first_line(error)[:300]
        raise DataError(f"cannot open {folder} as a saved dataset: {reason}; write it anew") from None
    return read_hf(loaded, str(folder), columns, test_split)


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_hf(loaded: Any, title: str, columns: Columns, test_split: str | None) -> tuple[Part, Part | None]:
    """Take a ``Dataset``, or a ``DatasetDict`` with a split called train.

    Raises:
        DataError: no such split or columns, or no rows.
    """
    if not isinstance(loaded, Mapping):
        return hf_part(loaded, title, columns), None
    train, test = _two(loaded, title, test_split)
    return hf_part(loaded[train], f"{title} ({train})", columns), (
        None if test is None else hf_part(loaded[test], f"{title} ({test})", columns)
    )


def hf_part(data: Any, title: str, columns: Columns) -> Part:
    """Take one ``Dataset`` of the Hugging Face library; its images stay encoded until they are needed.

    Raises:
        DataError: no such columns, or no rows.
    """
    datasets = require("datasets", "datasets")
    kinds = {name: _feature_kind(datasets, feature) for name, feature in data.features.items()}
    image, label = find_columns(kinds, columns, title)
    names = None if label is None else getattr(data.features[label], "names", None)
    values = None if label is None else list(data.with_format(None)[label])
    encoded = data.select_columns([image]).with_format(None)
    if isinstance(data.features[image], datasets.Image):
        encoded = encoded.cast_column(image, datasets.Image(decode=False))
    column = _HfColumn(encoded, image)
    return _part(column, len(data), values, names and tuple(names), title, "Hugging Face dataset")


class _HfColumn:
    """One column of a dataset, read row by row."""

    def __init__(self, data: Any, name: str) -> None:
        self._data, self._name = data, name

    def __getitem__(self, row: int) -> Any:
        return self._data[row][self._name]


def _feature_kind(datasets: Any, feature: Any) -> str:
    """Say what a column may be: image, names (a label with names), label or other."""
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "names"
    kind = getattr(feature, "dtype", "")
    if kind in ("binary", "large_binary") or (isinstance(feature, Mapping) and "bytes" in feature):
        return "image"
    return "label" if kind.startswith(("int", "uint", "string", "large_string")) else "other"


def find_columns(kinds: Mapping[str, str], columns: Columns, title: str) -> tuple[str, str | None]:
    """Choose the columns of images and labels; None for no labels.

    A column that the user named is taken. Otherwise the image is the only column that can be one, or the one of a
    usual name; the label is the one with class names, or the one of a usual name.

    Args:
        kinds: name -> image, names, label or other.
        columns: as the user named them.
        title: for errors.

    Raises:
        DataError: they cannot be told; lists the columns.
    """
    there = f"its columns are {', '.join(kinds) or 'none'}"
    image, label = columns
    for name, setting in ((image, "image_column"), (label, "label_column")):
        if name is not None and name not in kinds:
            raise DataError(f"{title} has no column {name!r}; {there}: choose another {setting}")
    if image is None:
        able = [name for name, kind in kinds.items() if kind == "image"]
        image = next((name for name in _IMAGES if name in able), able[0] if len(able) == 1 else None)
    if image is None:
        raise DataError(
            f"cannot tell which column of {title} holds the images; {there}: name it with image_column"
        )
    if label is None:
        named = [name for name, kind in kinds.items() if kind == "names"]
        able = named or [name for name, kind in kinds.items() if kind == "label"]
        label = next((name for name in _LABELS if name in able), named[0] if len(named) == 1 else None)
        if label is None and len(named) > 1:
            raise DataError(
                f"{title} has several columns of classes, {', '.join(named)}; choose one with label_column"
            )
    return image, label


def _two(splits: Mapping[str, Any], title: str, test_split: str | None) -> tuple[str, str | None]:
    """Return the names of the training and the test split."""
    there = f"it has {', '.join(map(str, splits))}"
    if TRAIN not in splits:
        if len(splits) == 1 and test_split is None:
            return next(iter(splits)), None
        raise DataError(f"{title} has no split called {TRAIN}; {there}")
    if test_split is not None and test_split not in splits:
        raise DataError(f"{title} has no split called {test_split}; {there}")
    if test_split == TRAIN:
        raise DataError(
            f"the split {TRAIN} of {title} is for training; name another test_split, or leave it out"
        )
    return TRAIN, test_split or next((name for name in TESTS if name in splits), None)


def _part(
    column: Any, count: int, values: list[Any] | None, names: tuple[str, ...] | None, title: str, kind: str
) -> Part:
    if not count:
        raise DataError(f"{title} has no rows; fill it, or choose another")
    labels, words = (np.full(count, -1, np.int64), None) if values is None else as_labels(values, title)
    store = ColumnStore(column, title)
    source = sampled_fingerprint(labels, lambda row: _content(store, row))
    return Part(store, labels, names or words, source, title, {"kind": kind})


def _content(store: ColumnStore, row: int) -> bytes:
    try:
        encoded = store.content(row)
    except CorruptImageError:
        return b""
    return encoded if isinstance(encoded, bytes) else str(encoded).encode()

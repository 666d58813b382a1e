"""Folders of image files.

photos/train/cat/1.jpg    photos/val/cat/9.jpg      two halves; see TRAINS and TESTS for other names of them
photos/cat/1.jpg          photos/dog/2.jpg          one folder, to be split
photos/val/cat/1.jpg      photos/val/dog/2.jpg      nothing but a half to test on
photos/1.jpg              photos/2.jpg              images without labels
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from itrd.data.decode import SUFFIXES
from itrd.data.lazy import FileStore
from itrd.data.parts import Part
from itrd.errors import DataError

TRAIN = "train"
TESTS = ("val", "validation", "valid", "test")  # the first that is there
ALSO_TRAIN = ("training",)  # of folders, where capitals make no difference either
ALSO_TEST = ("eval", "testing")
CHECKED = "itrd-checked.json"
_HEAD = 4096  # bytes of a file that its fingerprint reads


def read_folder(folder: Path, test_split: str | None = None) -> tuple[Part | None, Part | None]:
    """Find the images of a folder: a training part and a test part, one of which may be missing.

    Files are in the order of their paths, classes in the order of their names. Nothing is decoded; of each file the
    size and the first 4,096 bytes are read.

    Args:
        folder: see the module's text.
        test_split: name of the subfolder to test on; None for the first of :data:`TESTS` and :data:`ALSO_TEST`.

    Raises:
        DataError: there is no image, or the layout is none of these.
    """
    try:
        there = {entry.name.lower(): entry.name for entry in os.scandir(folder) if entry.is_dir()}
        train = next((there[name] for name in (TRAIN, *ALSO_TRAIN) if name in there), None)
        present = [there[name] for name in (*TESTS, *ALSO_TEST) if name in there]
        shown = [name for name in there.values() if not _hidden(name)]
        if train is None and (not present or set(shown) - set(present)):  # folders of classes
            if test_split is not None:
                raise DataError(
                    f"{folder} has no folder {TRAIN}, so there is no {test_split} beside it; leave it out"
                )
            return _part(folder, folder), None
        name = test_split or next(iter(present), None)
        if test_split is not None and not (folder / test_split).is_dir():
            raise DataError(
                f"{folder} has no folder {test_split}; it has {', '.join(filter(None, [train, *present]))}"
            )
        if train is None:
            assert name is not None
            return None, _part(folder / name, folder)
        if name == train:
            raise DataError(f"{folder / train} is for training; name another test_split, or leave it out")
        return _part(folder / train, folder), None if name is None else _part(folder / name, folder)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from None


def _part(folder: Path, root: Path) -> Part:
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))
    loose = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and _is_image(entry.name))
    found = [(path, label) for label, name in enumerate(classes) for path in _images_below(folder, name)]
    if loose and found:
        raise DataError(
            f"{folder} holds both images ({loose[0]}) and folders of images ({found[0][0]}); sort the images into the "
            "folders of their classes, or remove the folders"
        )
    if not loose and not found:
        raise DataError(
            f"there is no image in {folder}; known are {', '.join(sorted(SUFFIXES))}, in one folder for each class"
        )
    if found:
        missing = sorted(set(range(len(classes))) - {label for _, label in found})
        if missing:
            raise DataError(
                f"the class folder {folder / classes[missing[0]]} holds no image; fill or remove it"
            )
    paths = loose or [path for path, _ in found]
    labels = np.array([-1] * len(loose) if loose else [label for _, label in found], dtype=np.int64)
    return Part(
        FileStore(folder, paths),
        labels,
        tuple(classes) if found else None,
        _fingerprint(folder, paths, labels),
        str(folder),
        {"kind": "image folder"},
        root / CHECKED,
    )


def _images_below(folder: Path, name: str) -> Iterator[str]:
    """Yield the images of a class, at any depth, as paths relative to the folder."""
    files = []
    for place, folders, names in os.walk(
        folder / name
    ):  # links to folders are not followed: they may be circles
        folders[:] = [inner for inner in folders if not _hidden(inner)]
        files += [Path(place, file).relative_to(folder).as_posix() for file in names if _is_image(file)]
    yield from sorted(files)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _fingerprint(folder: Path, paths: list[str], labels: np.ndarray) -> str:
    """Return a sha256 (hex) over every file's relative path, label, size and first bytes.

    Cheap where the content would take hours to read: one small read a file. An image that is changed beyond its first
    4,096 bytes without a change of size goes unnoticed.
    """
    digest = hashlib.sha256()
    for path, label in zip(paths, labels.tolist(), strict=True):
        with (folder / path).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path}\0{label}\0{size}\0".encode("utf-8", "surrogateescape"))
            digest.update(file.read(_HEAD))
    return digest.hexdigest()

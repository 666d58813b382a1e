"""The teacher table on disk: rows in memory-mapped files, and which of them are valid.

In a folder named after the key:

    table.json        the key and the shapes
    logits.bin        N * V rows of K numbers
    embedding.bin     N * V rows of D numbers
    filled.bin        N * V bits: which rows are valid; replaced as a whole after the rows are flushed
    filled.lock       held while the bits are replaced
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from itrd.errors import DataError
from itrd.files import read_json, write_atomically, write_json

PATIENCE = 300  # seconds that a process waits for others to write down their rows, which takes milliseconds

# Files hold raw bytes; these integer types carry the floats of the same size through NumPy, which has no bf16.
_CARRIER = {
    torch.float32: np.int32,
    torch.bfloat16: np.int16,
    torch.float16: np.int16,
    torch.float64: np.int64,
}


class TableFile:
    """Rows on disk and which of them are valid.

    Args:
        root: folder of all tables.
        key: of :func:`itrd.engine.table.table_key`.
        rows: N * V.
        columns: name -> (width, dtype) of each part of a row.

    Raises:
        DataError: the folder holds another table, or cannot be used.
    """

    def __init__(
        self, root: Path, key: dict[str, Any], rows: int, columns: dict[str, tuple[int, torch.dtype]]
    ) -> None:
        content = {
            "format": 1,
            "key": key,
            "rows": rows,
            "columns": {name: [width, str(dtype)] for name, (width, dtype) in columns.items()},
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / name
        self._rows = rows
        self._files: dict[str, BinaryIO] = {}
        weakref.finalize(self, _close, self._files)
        try:
            self._open(content)
            self._parts = {
                part: (self._map(part, width, dtype), dtype) for part, (width, dtype) in columns.items()
            }
        except OSError as error:
            raise DataError(f"cannot use the teacher table {self.folder}: {error.strerror}") from None
        self.filled = self._read_filled()

    def _open(self, content: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        description = self.folder / "table.json"
        if not description.exists():
            write_json(description, content)
        try:
            found = read_json(description)
        except ValueError:
            found = None
        if found != content:
            raise DataError(
                f"the teacher table {self.folder} was made for another teacher, dataset or precision, "
                "or is damaged; delete that folder"
            )

    def _map(self, part: str, width: int, dtype: torch.dtype) -> np.memmap:
        path, carrier = self.folder / f"{part}.bin", np.dtype(_CARRIER[dtype])
        size = self._rows * width * carrier.itemsize
        path.touch()
        file = self._files[part] = path.open("r+b", buffering=0)
        if file.seek(0, os.SEEK_END) != size:
            file.truncate(size)  # a hole: takes no space until it is written
        return np.memmap(file, dtype=carrier, mode="r", shape=(self._rows, width))

    def _read_filled(self) -> np.ndarray:
        try:
            packed = np.fromfile(self.folder / "filled.bin", dtype=np.uint8)
        except FileNotFoundError:
            return np.zeros(self._rows, dtype=bool)
        if len(packed) != -(-self._rows // 8):
            raise DataError(f"the teacher table {self.folder} is damaged (filled.bin); delete that folder")
        return np.unpackbits(packed, count=self._rows).astype(bool)

    def write(self, rows: np.ndarray, values: dict[str, Tensor]) -> None:
        """Store rows; they are valid for later runs after :meth:`commit`.

        They are written to the files, not into the mapped memory: on a full disk that would end the process.

        Raises:
            DataError: there is no room.
        """
        with self._written():
            for part, (store, dtype) in self._parts.items():
                bits = values[part].detach().to("cpu", dtype).contiguous().view(_torch_carrier(dtype)).numpy()
                for first, last in _runs(rows):
                    _write_at(
                        self._files[part], bits[first:last].tobytes(), int(rows[first]) * store.strides[0]
                    )
        self.filled[rows] = True

    def read(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return stored rows as CPU tensors (len(rows), width)."""
        return {
            part: torch.from_numpy(np.ascontiguousarray(store[rows])).view(dtype)
            for part, (store, dtype) in self._parts.items()
        }

    def commit(self) -> None:
        """Make what was written durable: rows first, then the bits that declare them valid."""
        lock = FileLock(self.folder / "filled.lock", mode=0o666, timeout=PATIENCE)
        with self._written():
            for file in self._files.values():
                os.fsync(file)
            with lock:  # or one of two that commit at once loses its bits
                self.refresh()
                write_atomically(self.folder / "filled.bin", np.packbits(self.filled).tobytes())

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Inside, rows are written down: say what to do where that fails."""
        try:
            yield
        except Timeout as error:
            raise DataError(
                f"another process has held {error.lock_file} for {PATIENCE} seconds; end it if it hangs, then "
                "continue this run with --resume"
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot write the teacher table {self.folder}: {error.strerror or error}; make room, or leave "
                "teacher_table out, then continue with --resume"
            ) from None

    def refresh(self) -> None:
        """Take notice of the rows that other runs have committed meanwhile: they were written to the same files."""
        self.filled |= self._read_filled()


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Bounds of the stretches in which rows follow one another."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return itertools.pairwise([0, *breaks.tolist(), len(rows)])


def _write_at(file: BinaryIO, content: bytes, offset: int) -> None:
    while content:  # the last bytes that a disk has room for are written without an error
        done = os.pwrite(file.fileno(), content, offset)
        content, offset = content[done:], offset + done


def _close(files: dict[str, BinaryIO]) -> None:
    for file in files.values():
        file.close()


def _torch_carrier(dtype: torch.dtype) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]

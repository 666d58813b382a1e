"""The teacher as a table: its outputs for every (image, view), computed once and looked up ever after.

Crop and flip show an image in a finite number of views (162 for CIFAR), and a frozen teacher in eval mode is
a function of (image, view). Methods that read only logits and embedding need nothing else of it. The outputs lie
in memory-mapped files of N x V rows, most of them holes until they are needed: before each epoch the rows
that the epoch's plan asks for and that are not there yet are computed, in batches of one fixed size
(:meth:`TeacherTable.fill` computes all of them ahead). On a GPU with room for the whole table the rows then stay in its
memory, shared by all runs of the process; otherwise the epoch's N rows are copied there from the file through pinned
memory, in one piece. A step only slices them.

What lies on disk: :mod:`itrd.engine.table_file`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from itrd.data.datasets import ImageDataset
from itrd.data.plan import EpochPlan
from itrd.data.source import ImageSource
from itrd.engine.checkpoint import sha256_of_weights
from itrd.engine.device import autocast
from itrd.engine.table_file import TableFile
from itrd.engine.team import ALONE, Team
from itrd.errors import DataError
from itrd.models.base import Outputs
from itrd.models.observe import Observer

TABULAR = frozenset({"logits", "embedding"})

COMMIT_EVERY = 1 << 17  # rows that a filling that is killed may have to compute again


def table_key(
    net: nn.Module,
    data: ImageDataset,
    images: ImageSource,
    precision: str,
    batch_size: int,
    taps: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Everything that the rows depend on: network, weights, what is read, images, normalisation, views, arithmetic."""
    return {
        "network": f"{type(net).__module__}.{type(net).__qualname__}",
        "teacher": sha256_of_weights(net),
        "taps": None if taps is None else list(taps),
        "data": data.fingerprint,
        "mean": list(data.mean),
        "std": list(data.std),
        "padding": data.padding,
        "flip": data.flip,
        "precision": precision,
        "device": images.device.type,
        "batch": batch_size,
        "channels_last": images.channels_last,
    }


@dataclass(frozen=True)
class EpochRows:
    """The teacher's outputs of one epoch, in the order of its plan, on the training device."""

    logits: Tensor
    embedding: Tensor | None

    def slice(self, start: int, count: int) -> Outputs:
        """Outputs of the samples ``start`` to ``start + count`` of the plan."""
        embedding = None if self.embedding is None else self.embedding[start : start + count]
        return Outputs(self.logits[start : start + count], embedding)


class DeviceRows:
    """A table's rows in a device's memory, brought there when they are first asked for.

    Args:
        columns: name -> (width, dtype) of each part of a row.
        rows: N * V.
        device: where.
    """

    def __init__(self, columns: dict[str, tuple[int, torch.dtype]], rows: int, device: torch.device) -> None:
        self._parts = {
            name: torch.empty(rows, width, dtype=dtype, device=device)
            for name, (width, dtype) in columns.items()
        }
        self._there = np.zeros(rows, dtype=bool)
        self._device = device

    def get(self, rows: np.ndarray, file: TableFile) -> dict[str, Tensor]:
        """Return rows (int64, any order, all valid in ``file``) as tensors (len(rows), width) on the device."""
        absent = np.unique(rows[~self._there[rows]])
        if len(absent):
            self.put(absent, file.read(absent))
        # A copy from pageable memory waits for the stream, so that runs on other streams see whole rows.
        where = torch.from_numpy(rows).to(self._device)
        return {name: part[where] for name, part in self._parts.items()}

    def put(self, rows: np.ndarray, values: dict[str, Tensor]) -> None:
        """Keep rows (int64, each once) with these values (len(rows), width)."""
        where = torch.from_numpy(rows).to(self._device)
        for name, value in values.items():
            self._parts[name][where] = value.to(self._device)
        self._there[rows] = True


# The rows on a device serve every run of the process that looks into the same table.
_ON_DEVICE: WeakValueDictionary[tuple[str, torch.device], DeviceRows] = WeakValueDictionary()


def rows_on(
    device: torch.device, file: TableFile, columns: dict[str, tuple[int, torch.dtype]], rows: int
) -> DeviceRows | None:
    """Keep a table's rows on a GPU if they take at most a quarter of its free memory; None otherwise."""
    if device.type != "cuda":
        return None  # the file's pages are in memory already
    key = (str(file.folder.absolute()), device)
    there = _ON_DEVICE.get(key)
    size = rows * sum(width * dtype.itemsize for width, dtype in columns.values())
    if there is None and size <= torch.cuda.mem_get_info(device)[0] // 4:
        there = _ON_DEVICE[key] = DeviceRows(columns, rows, device)
    return there


class TeacherTable:
    """A frozen teacher whose outputs are looked up, and computed once where they are missing.

    Args:
        root: folder of all tables; shared by runs and by processes.
        observe: of the teacher, see :func:`itrd.models.observe.observer`.
        net: the teacher, in eval mode, on the device.
        data: what it is trained on.
        images: its training images on the device.
        precision: fp32, tf32 or bf16.
        batch_size: images per forward pass when rows are computed. Every pass has exactly this size (the last
            is filled up with repetitions), so that a row does not depend on which others were missing. With
            the training batch size the rows are what the live teacher gives in a full batch.
        taps: modules of the teacher that the settings name; None for its own.

    Attributes:
        computed: rows computed by this object.
        looked_up: rows looked up by this object.
    """

    def __init__(
        self,
        root: Path,
        observe: Observer,
        net: nn.Module,
        data: ImageDataset,
        images: ImageSource,
        precision: str,
        batch_size: int,
        taps: Sequence[str] | None = None,
    ) -> None:
        self._observe, self._images, self._precision, self._batch = observe, images, precision, batch_size
        self.computed = self.looked_up = 0
        probe = self._forward(np.zeros(1, dtype=np.int64))
        columns = {part: (value.shape[1], value.dtype) for part, value in probe.items()}
        row_bytes = sum(width * dtype.itemsize for width, dtype in columns.values())
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot use the folder {root} for teacher tables: {error.strerror}") from None
        free = shutil.disk_usage(root).free
        if len(images) * row_bytes > free // 2:  # one epoch; the files grow as epochs see new views
            raise DataError(
                f"no room for a teacher table in {root}: an epoch needs {len(images) * row_bytes:,} bytes"
            )
        key = table_key(net, data, images, precision, batch_size, taps)
        rows = len(images) * images.num_views
        self.file = TableFile(root, key, rows, columns)
        self._check()
        self._on_device = rows_on(images.device, self.file, columns, rows)

    def epoch(self, plan: EpochPlan) -> EpochRows:
        """Outputs for an epoch's plan (on the CPU); rows that are missing are computed and stored."""
        rows = plan.order.numpy() * self._images.num_views + plan.views.numpy()
        self.file.refresh()  # other runs may have written some meanwhile
        self._compute(rows[~self.file.filled[rows]])
        self.looked_up += len(rows)
        if self._on_device is not None:
            found = self._on_device.get(rows, self.file)
        else:
            found = {
                name: (value.pin_memory() if self._images.device.type == "cuda" else value).to(
                    self._images.device, non_blocking=True
                )
                for name, value in self.file.read(rows).items()
            }
        return EpochRows(found["logits"], found.get("embedding"))

    def fill(self, most: int | None = None, team: Team = ALONE) -> int:
        """Compute rows that are not there yet, all of them or the first ``most``; return how many are still missing.

        The processes of a team compute a part each, as far as they share the folder.
        """
        if team.size > 1:
            self._fill_part(team)
        missing = np.flatnonzero(~self.file.filled)
        now = missing[:most]
        for start in range(0, len(now), COMMIT_EVERY):
            self._compute(now[start : start + COMMIT_EVERY])
        return len(missing) - len(now)

    def _fill_part(self, team: Team) -> None:
        """Compute this process's part, in as many pieces as every other: they meet after each, and none waits long.

        The parts follow from the number of rows alone, as processes may open the table at different moments.
        """
        rows = len(self.file.filled)
        size = min(COMMIT_EVERY, -(-rows // team.size))
        for start in range(0, rows, team.size * size):
            first = min(start + team.rank * size, rows)
            piece = np.arange(first, min(first + size, rows))
            self._compute(piece[~self.file.filled[piece]])
            team.most(0)
        self.file.refresh()

    def _compute(self, missing: np.ndarray) -> None:
        """Compute and store rows."""
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            found = self._forward(part)
            if self._on_device is not None:
                self._on_device.put(part, found)
            self.file.write(part, found)  # waits for the device: runs on other streams see whole rows
        if len(missing):
            self.file.commit()
        self.computed += len(missing)

    @torch.no_grad()
    def _forward(self, rows: np.ndarray) -> dict[str, Tensor]:
        device, views = self._images.device, self._images.num_views
        full = np.resize(rows, self._batch)
        image = torch.from_numpy(full // views).to(device)
        view = torch.from_numpy(full % views).to(device)
        with autocast(device, self._precision):
            seen = self._observe(self._images.batch(image, view), False)
        found = {"logits": seen.logits[: len(rows)]}
        if seen.embedding is not None:
            found["embedding"] = seen.embedding[: len(rows)]
        return found

    def _check(self) -> None:
        """Recompute a few stored rows: a table that does not agree with its teacher is refused."""
        valid = np.flatnonzero(self.file.filled)
        if not len(valid):
            return
        rows = np.random.default_rng(0).choice(valid, size=min(self._batch, len(valid)), replace=False)
        stored, fresh = self.file.read(rows), self._forward(rows)
        tolerance = 1e-4 if self._precision == "fp32" else 2e-2
        for part, value in fresh.items():
            a, b = value.cpu().double(), stored[part].double()
            if not (a - b).abs().max() <= tolerance * a.abs().max():
                raise DataError(
                    f"the teacher table {self.file.folder} does not agree with the teacher; delete that folder"
                )

"""Logits that somebody else's teacher gave, from a file, in place of a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from itrd.data.datasets import ImageDataset
from itrd.data.plan import EpochPlan
from itrd.data.source import ImageSource
from itrd.engine.table import EpochRows
from itrd.errors import DataError, UserError, first_line
from itrd.methods.objective import Objective

_PART = 1 << 16  # rows that are checked at a time


class GivenLogits:
    """The logits of the training images, in the images' order.

    Args:
        path: a NumPy or safetensors file with one array: floating-point (N, K), the logits of every image as it is,
            which then serve for all its views; or (N, V, K), those of every view.

    Attributes:
        path: the file.
        num_classes: K.

    Raises:
        DataError: it is no such file, or a number in it is not finite.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = _read(path)
        if self._rows.ndim not in (2, 3) or self._rows.dtype.kind != "f" or 0 in self._rows.shape:
            raise DataError(
                f"{path} holds {self._rows.dtype} of shape {self._rows.shape}; logits are floating-point numbers of "
                "shape (images, classes) or (images, views, classes)"
            )
        for start in range(0, len(self._rows), _PART):
            finite = np.isfinite(self._rows[start : start + _PART])
            if not finite.all():
                row = start + int(np.argwhere(~finite)[0, 0])
                raise DataError(f"{path} has a number that is not finite, in row {row}; compute it anew")

    @property
    def num_classes(self) -> int:
        """K."""
        return self._rows.shape[-1]

    def check(self, objective: Objective, data: ImageDataset) -> None:
        """Refuse a method or a dataset that these logits are not enough for.

        Raises:
            UserError: the method reads more than logits, or has a stage of its own first.
            DataError: there is not one row for each training image, or not one logit for each class.
        """
        more = objective.reads - {"logits"}
        if more or not objective.reads:
            needs = f"reads {', '.join(sorted(more))} of the teacher" if more else "needs no teacher"
            raise UserError(
                f"{objective.describe()} {needs}, and {self.path} holds logits; choose a method that reads logits "
                "alone (kd, dkd, dist, ...), or give a teacher"
            )
        if len(self._rows) != len(data.train):
            raise DataError(
                f"{self.path} has {len(self._rows):,} rows and {data.name} {len(data.train):,} training images; give "
                "one row for each image, in the order in which the dataset is read"
            )
        if data.num_classes not in (0, self.num_classes):
            raise DataError(
                f"{self.path} has logits of {self.num_classes} classes and {data.name} has {data.num_classes}; "
                "compute them for this dataset"
            )

    def agreement(self, labels: np.ndarray) -> float:
        """Return the share of images, in percent, whose largest logit is their label's; that of the middle view.

        As low as chance, it says that the rows are in another order than the images.
        """
        rows = self._rows if self._rows.ndim == 2 else self._rows[:, self._rows.shape[1] // 2]
        return 100 * float((rows.argmax(axis=-1) == labels).mean())

    def bind(self, images: ImageSource) -> GivenRows:
        """Return what looks the logits up for an epoch.

        Raises:
            DataError: the images have another number of views.
        """
        if self._rows.ndim == 3 and self._rows.shape[1] != images.num_views:
            raise DataError(
                f"{self.path} has logits of {self._rows.shape[1]} views of each image, and the augmentation has "
                f"{images.num_views:,}; compute them for these views, or give one row for each image"
            )
        return GivenRows(self._rows, images.device)


class GivenRows:
    """Looks given logits up; see :meth:`itrd.engine.table.TeacherTable.epoch`.

    Args:
        rows: floating-point (N, K) or (N, V, K).
        device: where the answers go.
    """

    def __init__(self, rows: np.ndarray, device: torch.device) -> None:
        self._rows, self._device = rows, device

    def epoch(self, plan: EpochPlan) -> EpochRows:
        """Return the logits of an epoch's plan, float32."""
        order = plan.order.cpu().numpy()
        found = self._rows[order] if self._rows.ndim == 2 else self._rows[order, plan.views.cpu().numpy()]
        return EpochRows(torch.from_numpy(found.astype(np.float32)).to(self._device), None)


def _read(path: Path) -> np.ndarray:
    """Map a .npy file into memory, or read the only tensor of a .safetensors file."""
    if path.suffix not in (".npy", ".safetensors"):
        raise DataError(f"{path} is neither .npy nor .safetensors; write the logits into one of these")
    try:
        if path.suffix == ".npy":
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            return array
        with safe_open(str(path), "pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise DataError(
                    f"{path} holds {len(names)} tensors ({', '.join(names[:5])}); keep the logits alone"
                )
            tensor = file.get_tensor(names[0])
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"cannot read the logits in {path}: {reason}; write them anew") from None

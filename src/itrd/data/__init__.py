"""Datasets: finding, reading and downloading them, and serving augmented batches, from device memory or by workers.

Importing this package loads neither torch nor numpy; each name is resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from itrd.data.datasets import (
    DatasetInfo,
    ImageDataset,
    Split,
    describe_dataset,
    list_datasets,
    load_dataset,
)

if TYPE_CHECKING:
    from itrd.data.device import DeviceImages
    from itrd.data.download import download_dataset
    from itrd.data.loaded import LoadedImages
    from itrd.data.opening import Reading, read_dataset
    from itrd.data.plan import EpochPlan, plan_epoch

_LAZY = {
    "DeviceImages": "itrd.data.device",
    "EpochPlan": "itrd.data.plan",
    "LoadedImages": "itrd.data.loaded",
    "Reading": "itrd.data.opening",
    "download_dataset": "itrd.data.download",
    "plan_epoch": "itrd.data.plan",
    "read_dataset": "itrd.data.opening",
}

__all__ = [
    "DatasetInfo",
    "DeviceImages",
    "EpochPlan",
    "ImageDataset",
    "LoadedImages",
    "Reading",
    "Split",
    "describe_dataset",
    "download_dataset",
    "list_datasets",
    "load_dataset",
    "plan_epoch",
    "read_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Bring images and networks to the training device, and build what depends on both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from itrd.data.datasets import ImageDataset, Split
from itrd.data.device import DeviceImages
from itrd.engine.config import RunConfig
from itrd.engine.table import TABULAR, TeacherTable
from itrd.engine.task import DistillTask
from itrd.seeds import derive


def place_images(
    data: ImageDataset, config: RunConfig, device: torch.device
) -> tuple[DeviceImages, DeviceImages]:
    """Put the training and the test images on the device, once for all runs on this dataset object."""
    where = (device, config.channels_last)
    there = _PLACED.setdefault(data, {})
    if where not in there:
        there[where] = _place(data, config, device)
    return there[where]


_PLACED: WeakKeyDictionary[ImageDataset, dict[Any, tuple[DeviceImages, DeviceImages]]] = WeakKeyDictionary()


def _place(data: ImageDataset, config: RunConfig, device: torch.device) -> tuple[DeviceImages, DeviceImages]:
    def placed(split: Split, padding: int, flip: bool) -> DeviceImages:
        return DeviceImages(
            split,
            data.mean,
            data.std,
            padding=padding,
            flip=flip,
            device=device,
            channels_last=config.channels_last,
        )

    return placed(data.train, data.padding, data.flip), placed(data.test, 0, False)


def place_task(
    task: DistillTask, images: DeviceImages, classes: int, config: RunConfig, device: torch.device
) -> None:
    """Move the networks to the device and build the objective's trainable modules."""
    for net in (task.student, task.teacher):
        if net is not None:
            net.to(device)
            if config.channels_last:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # The extra modules' weights depend on the seed alone, not on how the student was initialised.
    torch.manual_seed(derive(config.seed, "method"))
    few = torch.arange(min(4, len(images)), device=device)
    task.setup(images.plain(few), classes, images.labels)


def open_table(
    task: DistillTask, data: ImageDataset, images: DeviceImages, config: RunConfig, device: torch.device
) -> TeacherTable | None:
    """Open the table of teacher outputs, if this run is to use one and its methods can."""
    folder = getattr(config, "teacher_table", None)
    if folder is None or task.teacher is None or not task.objective.reads:
        return None
    if not task.objective.reads <= TABULAR:
        print(
            "the method reads feature maps: the teacher is run at every step, not looked up",
            file=sys.stderr,
        )
        return None
    assert task.observe_teacher is not None
    # On a CPU the training batch, so that a row has the bits of the live teacher; on a GPU a large one.
    batch = config.batch_size if device.type == "cpu" else max(1024, config.batch_size)
    return TeacherTable(
        Path(folder), task.observe_teacher, task.teacher, data, images, config.precision, batch
    )

"""Bring images and networks to the training device, and build what depends on both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from itrd.data.datasets import AnySplit, ImageDataset, Split
from itrd.data.device import DeviceImages
from itrd.data.loaded import LoadedImages
from itrd.data.resident import cores
from itrd.data.source import ImageSource
from itrd.data.views import UNLIMITED, Augmentation, Crop
from itrd.engine.config import RunConfig
from itrd.engine.given import GivenLogits, GivenRows
from itrd.engine.table import TABULAR, TeacherTable
from itrd.engine.task import DistillTask
from itrd.engine.team import ALONE, Team
from itrd.errors import UserError
from itrd.seeds import derive

MOST_WORKERS = 8


def place_images(
    data: ImageDataset, config: RunConfig, device: torch.device
) -> tuple[ImageSource, ImageSource]:
    """Bring the training and the test images to the device.

    What is kept there is so once for all runs on this dataset object; what is read in every epoch has workers of its
    own in every run.
    """
    settings: dict[str, Any] = {"channels_last": config.channels_last, "keep": config.resident != "no"}
    where = (device, *settings.values())
    there = _PLACED.setdefault(data, {})
    if where in there:
        return there[where]
    workers = default_workers(device) if config.workers is None else config.workers
    train = place_split(data, data.train, training_view(data), device, workers=workers, **settings)
    test = place_split(data, data.test, plain_view(data), device, workers=workers, **settings)
    if train.resident and test.resident:
        there[where] = train, test
    return train, test


_PLACED: WeakKeyDictionary[ImageDataset, dict[Any, tuple[ImageSource, ImageSource]]] = WeakKeyDictionary()


def training_view(data: ImageDataset) -> Augmentation:
    """Return how a dataset's training images are varied."""
    return data.augmentation or Crop(data.image_size, data.padding, data.flip)


def plain_view(data: ImageDataset) -> Crop:
    """Return the augmentation that leaves a dataset's images as they are."""
    return Crop(data.image_size, 0, False)


def place_split(
    data: ImageDataset,
    split: AnySplit,
    augmentation: Augmentation,
    device: torch.device,
    *,
    channels_last: bool = False,
    workers: int = 0,
    keep: bool = True,
) -> ImageSource:
    """Bring one split to the device: all of it, if it is decoded and crops are all that is asked for.

    Args:
        data: the dataset, for mean and deviation.
        split: of it.
        augmentation: how its views are made.
        device: where.
        channels_last: memory order of the batches.
        workers: processes that read what is not kept on the device.
        keep: whether it may be kept there.
    """
    crop = augmentation if isinstance(augmentation, Crop) else None
    if keep and crop is not None and isinstance(split, Split) and crop.size in (None, split.images.shape[2]):
        return DeviceImages(
            split,
            data.mean,
            data.std,
            padding=crop.padding,
            flip=crop.flip,
            device=device,
            channels_last=channels_last,
        )
    return LoadedImages(
        split,
        data.mean,
        data.std,
        augmentation=augmentation,
        size=data.image_size,
        device=device,
        channels_last=channels_last,
        workers=workers,
    )


def place_test(data: ImageDataset, device: torch.device) -> ImageSource:
    """Bring the test images alone to the device."""
    return place_split(data, data.test, plain_view(data), device, workers=default_workers(device))


def default_workers(device: torch.device) -> int:
    """Return how many processes read images: none where they would take the cores that the training needs."""
    return 0 if device.type == "cpu" else min(MOST_WORKERS, cores())


def place_task(
    task: DistillTask, images: ImageSource, classes: int, config: RunConfig, device: torch.device
) -> None:
    """Move the networks to the device and build the objective's trainable modules.

    Raises:
        UserError: batch norms are to be synchronised where that is not possible.
    """
    if config.sync_batch_norm and device.type == "cpu":
        raise UserError("sync_batch_norm needs GPUs; leave it out")
    if config.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(task)  # replaces modules: before anybody remembers one
    for net in (task.student, task.teacher):
        if net is not None:
            net.to(device)
            if config.channels_last:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # The extra modules' weights depend on the seed alone, not on how the student was initialised.
    torch.manual_seed(derive(config.seed, "method"))
    few = torch.arange(min(4, len(images)), device=device)
    task.setup(images.plain(few), classes, images.labels)
    if config.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(task.objective)  # the modules that it has just made
    if config.compile:
        task.compile_all()


def open_table(
    task: DistillTask,
    data: ImageDataset,
    images: ImageSource,
    config: RunConfig,
    device: torch.device,
    team: Team = ALONE,
) -> TeacherTable | GivenRows | None:
    """Open the table of teacher outputs, if this run is to use one and its methods can.

    Raises:
        UserError: there are too many views for one.
        DataError: the table, or a file of given logits, does not fit.
    """
    given = getattr(config, "teacher_logits", None)
    if given is not None and task.objective.reads:
        return GivenLogits(Path(given)).bind(images)
    folder = getattr(config, "teacher_table", None)
    if folder is None or task.teacher is None or not task.objective.reads:
        return None
    if not task.objective.reads <= TABULAR:
        print(
            "the method reads feature maps: the teacher is run at every step, not looked up",
            file=sys.stderr,
        )
        return None
    if images.num_views >= UNLIMITED:
        raise UserError(
            "a teacher table needs an augmentation with a limited number of views; add --augment crop, or leave "
            "teacher_table out"
        )
    assert task.observe_teacher is not None
    # On a CPU the training batch, so that a row has the bits of the live teacher; on a GPU a large one.
    batch = config.batch_size if device.type == "cpu" else max(1024, config.batch_size)
    table = TeacherTable(
        Path(folder),
        task.observe_teacher,
        task.teacher,
        data,
        images,
        config.precision,
        batch,
        taps=getattr(config, "teacher_taps", None),
    )
    if getattr(config, "fill_table", False):
        table.fill(team=team)
    return table

"""Train, distil and evaluate from Python, with names or with objects of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from itrd.data import load_dataset
from itrd.data.datasets import ImageDataset
from itrd.data.device import DeviceImages
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.device import resolve_device
from itrd.engine.evaluate import evaluate as _evaluate
from itrd.engine.networks import TrainedNetwork
from itrd.engine.record import Result
from itrd.engine.run import prepare_distill, prepare_train
from itrd.errors import UserError
from itrd.methods import Method, Objective, create_objective


def train(model: str | nn.Module, data: str | ImageDataset = "digits", **settings: Any) -> Result:
    """Train one network on labels alone.

    Args:
        model: name of a benchmark network, or any classifier on (B, C, H, W) images.
        data: name of a dataset, or a dataset.
        settings: fields of :class:`itrd.engine.config.TrainConfig`, for example ``epochs=10``. Nothing is
            written to disk unless ``out`` names a run folder.

    Raises:
        UserError: settings, data or network cannot work together.
    """
    name = model if isinstance(model, str) else type(model).__name__
    config = _config(TrainConfig, settings, model=name, data=_name(data))
    with prepare_train(config, model=_module(model), data=_dataset(data)) as trainer:
        return trainer.fit()


def distill(
    teacher: str | nn.Module,
    student: str | nn.Module,
    data: str | ImageDataset | None = None,
    method: str | Method | Objective = "itrd",
    **settings: Any,
) -> Result:
    """Train a student with the help of a frozen teacher.

    Args:
        teacher: run folder, checkpoint or published name (see :class:`itrd.engine.config.DistillConfig`), or
            any trained classifier. It is put in eval mode and frozen.
        student: name of a benchmark network, or any classifier; its weights are taken as they are and
            trained in place.
        data: name of a dataset, or a dataset; None for the one the teacher's file names.
        method: a method, an objective, or the notation of :mod:`itrd.methods.expression`.
        settings: fields of :class:`itrd.engine.config.DistillConfig`. Nothing is written to disk unless
            ``out`` names a run folder.

    Raises:
        UserError: settings, data and networks cannot work together.
    """
    objective = create_objective(method, settings.get("ce_weight"))
    names = {
        "teacher": teacher if isinstance(teacher, str) else type(teacher).__name__,
        "student": student if isinstance(student, str) else type(student).__name__,
        "method": method if isinstance(method, str) else objective.describe(),
    }
    config = _config(DistillConfig, settings, **names, data=_name(data))
    dataset = _dataset(data)
    given = None
    if not isinstance(teacher, str):
        if data is None:
            raise UserError(
                "name the dataset: a teacher given as a module does not tell what it was trained on"
            )
        dataset = dataset or load_dataset(str(data), config.data_root, download=config.download).subset(
            config.train_subset, config.test_subset
        )
        given = _given_teacher(teacher, dataset)
    with prepare_distill(
        config, teacher=given, student=_module(student), data=dataset, objective=objective
    ) as trainer:
        return trainer.fit()


def evaluate(
    net: nn.Module,
    data: str | ImageDataset,
    *,
    device: str = "auto",
    precision: str = "fp32",
    data_root: str = "data",
    normalisation: str | None = None,
) -> dict[str, float]:
    """Accuracy of a network on a test set: ``top1`` and ``top5`` in percent, ``loss``.

    Args:
        net: any classifier; it is moved to the device.
        data: name of a dataset, or a dataset.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32 or bf16.
        data_root: folder that holds the datasets.
        normalisation: ``dataset`` or ``imagenet`` (default: the dataset's own, or what a given dataset has).
    """
    dataset = data if isinstance(data, ImageDataset) else load_dataset(data, data_root)
    dataset = dataset.normalised(normalisation or dataset.normalisation)
    where = resolve_device(device)
    images = DeviceImages(dataset.test, dataset.mean, dataset.std, padding=0, flip=False, device=where)
    return _evaluate(net.to(where), images, precision)


def _config(cls: type, settings: dict[str, Any], **fixed: Any) -> Any:
    settings = {"progress": False, "tensorboard": False, "out": "", **settings, **fixed}
    try:
        return cls(**settings)
    except TypeError as error:
        raise UserError(str(error).replace("__init__()", "")) from None


def _name(data: str | ImageDataset | None) -> str | None:
    return data.name if isinstance(data, ImageDataset) else data


def _dataset(data: str | ImageDataset | None) -> ImageDataset | None:
    return data if isinstance(data, ImageDataset) else None


def _module(net: str | nn.Module) -> nn.Module | None:
    return None if isinstance(net, str) else net


@torch.no_grad()
def _given_teacher(net: nn.Module, data: ImageDataset) -> TrainedNetwork:
    first = next(net.parameters(), torch.zeros(()))
    images = DeviceImages(
        data.subset(test=2).test, data.mean, data.std, padding=0, flip=False, device=first.device
    )
    logits = net.eval()(images.plain(torch.arange(2, device=first.device)))
    arch = getattr(net, "arch", "") or type(net).__name__
    return TrainedNetwork(net, arch, logits.shape[1], "given", None, data.name)

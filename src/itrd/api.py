"""Train, distil and evaluate from Python, with names or with objects of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from itrd.engine.run import adapted, prepare_distill, prepare_train
from itrd.errors import UserError
from itrd.methods import Method, Objective, create_objective
from itrd.models.observe import examined, logits_of
from itrd.models.taps import match_taps


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
            any trained classifier. It is put in eval mode and frozen, and is left so.
        student: name of a network as on the command line, or any classifier; its weights are taken as they are and
            trained in place.
        data: name of a dataset, or a dataset; None for the one the teacher's file names.
        method: a method, an objective, or the notation of :mod:`itrd.methods.expression`.
        settings: fields of :class:`itrd.engine.config.DistillConfig`, for example ``control=True``, ``seeds=3``
            or ``teacher_taps=["layer3", "layer4"]``. Nothing is written to disk unless ``out`` names a run folder.

    Returns:
        The run. With ``control`` or several seeds, that of the first seed, with ``comparison`` for the rest
        (:mod:`itrd.engine.control`).

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
        given = _given_teacher(teacher, dataset, config)
    networks: dict[str, Any] = {
        "teacher": given,
        "student": _module(student),
        "data": dataset,
        "objective": objective,
    }
    if config.control or config.seeds > 1:
        from itrd.engine.control import run_seeds

        compared = run_seeds(config, **networks)
        return replace(next(iter(compared.distilled.values())), comparison=compared.document())
    with prepare_distill(config, **networks) as trainer:
        return trainer.fit()


def describe_taps(
    teacher: nn.Module,
    student: nn.Module,
    images: torch.Tensor,
    *,
    teacher_taps: Sequence[str] | None = None,
    student_taps: Sequence[str] | None = None,
) -> str:
    """Return a table of the feature maps that methods would read: pair by pair, module and shape in both networks.

    Args:
        teacher, student: any networks.
        images: two or more images (B, C, H, W).
        teacher_taps, student_taps: as in :func:`distill`.

    Raises:
        UserError: as :func:`itrd.models.taps.match_taps`.
    """
    return str(match_taps(student, teacher, images, student_taps, teacher_taps))


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
        precision: fp32, tf32 or bf16.
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
def _given_teacher(net: nn.Module, data: ImageDataset, config: DistillConfig) -> TrainedNetwork:
    first = next(net.parameters(), torch.zeros(()))
    images = DeviceImages(
        data.subset(test=2).test, data.mean, data.std, padding=0, flip=False, device=first.device
    )
    arch = getattr(net, "arch", "") or type(net).__name__
    given = TrainedNetwork(net.eval(), arch, 0, "given", None, data.name)
    two = images.plain(torch.arange(2, device=first.device))
    with examined("teacher", net, two):
        logits = logits_of(adapted(given, data, config).net.to(first.device)(two))
    return replace(given, num_classes=logits.shape[1])

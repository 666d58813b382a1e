"""Train, distil and evaluate from Python, with names or with objects of one's own.

Networks that are given are used themselves, not copies: they end up on the training device, in the memory format of the
run. The global random generators of torch, Python and NumPy, and torch's global switches, are left as they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from itrd.data.datasets import ImageDataset
from itrd.data.opening import Reading, read_dataset
from itrd.engine.checkpoint import sha256_of_weights
from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.device import be_deterministic, resolve_device, set_float32, switches_kept
from itrd.engine.evaluate import confusion as _confusion
from itrd.engine.evaluate import evaluate as _evaluate
from itrd.engine.inputs import adapted, get_data, get_test_data, size_for
from itrd.engine.networks import TrainedNetwork, given_network, load_network
from itrd.engine.place import place_split, place_test, plain_view
from itrd.engine.record import Result
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.state import generators, restore_generators
from itrd.errors import UnknownNameError, UserError
from itrd.methods import Method, Objective, create_objective
from itrd.models.base import name_of
from itrd.models.observe import examined, logits_of
from itrd.models.taps import match_taps


def train(model: str | os.PathLike[str] | nn.Module, data: Any = "cifar100", **settings: Any) -> Result:
    """Train one network on labels alone.

    Args:
        model: name of a network as on the command line (fresh ``"resnet8"``, trained ``"resnet8:FILE"``,
            ``"timm:NAME"`` and so on), or any classifier on (B, C, H, W) images.
        data: name of a dataset, a folder of images or any other source of :mod:`itrd.data.opening`: an ImageDataset, a
            PyTorch dataset or DataLoader, a pair (train, test) of these.
        settings: fields of :class:`itrd.engine.config.TrainConfig`, for example ``epochs=10``. Nothing is
            written to disk unless ``out`` names a run folder.

    Returns:
        The run: its epochs, the trained network as ``student``, and the record.

    Raises:
        UserError: settings, data or network cannot work together; RunFolderError, which is one, the folder.
        TrainingError: a loss or gradient is not finite.

    Example:
        >>> result = itrd.train("resnet8", "digits", epochs=1, train_subset=64, test_subset=20)
        >>> len(result.history)
        1
    """
    model = given_network("network", model)
    name = model if isinstance(model, str) else name_of(model)
    data, settings = _own_augmentation(data, settings, model)
    config = _config(TrainConfig, settings, model=name, data=_name(data))
    with (
        _process_kept(config),
        prepare_train(config, model=_module(model), data=_given(data)) as trainer,
    ):
        return trainer.fit()


def distill(
    teacher: str | os.PathLike[str] | nn.Module | None,
    student: str | os.PathLike[str] | nn.Module,
    data: Any = None,
    method: str | Method | Objective = "itrd",
    **settings: Any,
) -> Result:
    """Train a student with the help of a frozen teacher.

    Args:
        teacher: run folder, checkpoint or published name (see :class:`itrd.engine.config.DistillConfig`), or
            any trained classifier. It is put in eval mode and frozen, and is left so. None where ``teacher_logits``
            names a file with its logits.
        student: name of a network as on the command line, or any classifier; its weights are taken as they are and
            trained in place.
        data: as in :func:`train`; None for the dataset the teacher's file names.
        method: a method, an objective, or the notation of :mod:`itrd.methods.expression`.
        settings: fields of :class:`itrd.engine.config.DistillConfig`, for example ``control=True``, ``seeds=3``
            or ``teacher_taps=["layer3", "layer4"]``. Nothing is written to disk unless ``out`` names a run folder.

    Returns:
        The run. With ``control`` or several seeds, that of the first seed, with ``comparison`` for the rest
        (:mod:`itrd.engine.control`).

    Raises:
        UserError: settings, data and networks cannot work together; RunFolderError, which is one, the folder.
        TrainingError: a loss or gradient is not finite.

    Example:
        >>> teacher = itrd.create_model("resnet20", num_classes=10)
        >>> result = itrd.distill(teacher, "resnet8", "digits", "kd", epochs=1, train_subset=64, test_subset=20)
        >>> sorted(result.last.test)
        ['loss', 'top1', 'top5']
    """
    objective = create_objective(method, settings.get("ce_weight"))
    teacher = None if teacher is None else given_network("teacher", teacher)
    student = given_network("student", student)
    names = {
        "teacher": teacher if isinstance(teacher, str) else "" if teacher is None else name_of(teacher),
        "student": student if isinstance(student, str) else name_of(student),
        "method": method if isinstance(method, str) else objective.describe(),
    }
    data, settings = _own_augmentation(data, settings, student)
    config = _config(DistillConfig, settings, **names, data=_name(data))
    dataset = _given(data)
    given = None
    if isinstance(teacher, nn.Module):
        if data is None:
            raise UserError(
                "name the dataset: a teacher given as a module does not tell what it was trained on"
            )
        dataset = get_data(config, dataset, student if isinstance(student, str) else None)
        given = _given_teacher(teacher, dataset, config)
    networks: dict[str, Any] = {
        "teacher": given,
        "student": _module(student),
        "data": dataset,
        "objective": objective,
    }
    with _process_kept(config):
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
    for role, net in (("teacher", teacher), ("student", student)):
        given_network(role, net, names=False)
    return str(match_taps(student, teacher, images, student_taps, teacher_taps))


def evaluate(
    net: str | os.PathLike[str] | nn.Module,
    data: Any,
    *,
    device: str = "auto",
    precision: str = "fp32",
    data_root: str = "data",
    normalisation: str | None = None,
    confusion: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Accuracy of a network on a test set: ``top1`` and ``top5`` in percent, ``loss``.

    Args:
        net: run folder, checkpoint or published name, whose images are then read as in its training; or any classifier,
            which is moved to the device.
        data: as in :func:`train`. Of images without a division into training and test images, the part is measured
            on that :func:`train` holds out, or, if the file of a named network does not say that it was trained on the
            rest, all; ``{"test": dataset}`` means all of them.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        data_root: folder that holds the datasets.
        normalisation: ``dataset`` or ``imagenet`` (default: as in the training of a named network; otherwise the
            dataset's own, or what a given dataset has).
        confusion: also count how often images of a class (row) are taken for which class (column), in an int64 tensor
            (K, K) under ``confusion``; classes are in the order of the dataset's ``class_names``.
        settings: how images are read, as in :class:`itrd.data.opening.Reading`, for example ``image_size=96``.

    Raises:
        UserError: the data cannot be read, has no labelled test images, or is not what a named network was trained on.
    """
    _check_names(Reading, settings)
    settings = {key: _plain(value) for key, value in settings.items()}
    network = given_network("network", net)
    if isinstance(network, str):
        named = load_network(network)
        network = named.net
        dataset = get_test_data(named, data, root=data_root, normalisation=normalisation, **settings)
    else:
        dataset = read_dataset(data, Reading(**settings), root=data_root, train=False)
        dataset = dataset.normalised(normalisation or dataset.normalisation)
    if not len(dataset.test):
        raise UserError(f"{dataset.name} has no labelled test images to measure an accuracy on; give some")
    where = resolve_device(device)
    images = place_test(dataset, where)
    network = network.to(where)
    first = images.plain(torch.arange(1, device=where))
    with switches_kept():
        if where.type == "cuda":
            set_float32(precision)
        with examined("network", network, first):
            logits_of(network(first))
        found: dict[str, Any] = dict(_evaluate(network, images, precision, finite=True))
        if confusion:
            found["confusion"] = _confusion(network, images, precision)
    return found


@contextmanager
def _process_kept(config: RunConfig) -> Iterator[None]:
    """Leave the global random generators, which a run seeds, and torch's global switches as they were."""
    device = resolve_device(config.device)
    with switches_kept():
        if config.deterministic:
            be_deterministic(device)  # before the generator's state is read, which is a first use of a GPU
        before = generators(device)
        try:
            yield
        finally:
            restore_generators(before, device)


def _config(cls: type, settings: dict[str, Any], **fixed: Any) -> Any:
    settings = {"progress": False, "tensorboard": False, "out": "", **settings, **fixed}
    _check_names(cls, settings)
    return cls(**{key: _plain(value) for key, value in settings.items()})


def _plain(value: Any) -> Any:
    """Return a setting as the settings have it: text for paths and devices, lists, Python's own numbers."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.device):
        return str(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_names(cls: type, settings: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(cls)]
    for name in settings:
        if name not in known:
            raise UnknownNameError("setting", name, known)


def _name(data: Any) -> str | None:
    if data is None or isinstance(data, (str, os.PathLike)):
        return None if data is None else os.fspath(data)
    return data.name if isinstance(data, ImageDataset) else type(data).__name__


def _given(data: Any) -> Any:
    """What the settings cannot name."""
    return None if isinstance(data, (str, os.PathLike)) else data


def _own_augmentation(data: Any, settings: dict[str, Any], net: Any) -> tuple[Any, dict[str, Any]]:
    """Read a dataset with a function as ``augment``, which settings cannot hold; return it and the other settings."""
    if not callable(settings.get("augment")):
        return data, settings
    if data is None:
        raise UserError("name the dataset, too, where augment is a function")
    names = {field.name for field in fields(Reading)}
    asked = {key: value for key, value in settings.items() if key in names}
    size = size_for(net) if isinstance(net, str) and not isinstance(data, ImageDataset) else None
    reading = Reading(**{"image_size": size, **asked})
    others = {key: value for key, value in settings.items() if key not in names}
    where = {key: others[key] for key in ("download", "train_subset", "test_subset") if key in others}
    return read_dataset(data, reading, root=others.get("data_root", "data"), **where), others


def _module(net: Any) -> nn.Module | None:
    return None if isinstance(net, str) else net


@torch.no_grad()
def _given_teacher(net: nn.Module, data: ImageDataset, config: DistillConfig) -> TrainedNetwork:
    first = next(net.parameters(), torch.zeros(()))
    few = data.train.take(np.arange(min(2, len(data.train))))
    images = place_split(data, few, plain_view(data), first.device)
    given = TrainedNetwork(net.eval(), name_of(net), 0, "given", None, data.name)
    two = images.plain(torch.arange(len(few), device=first.device))
    whole = adapted(given, data, config).net.to(first.device)
    with examined("teacher", net, two):
        logits = logits_of(whole(two))
    return replace(given, num_classes=logits.shape[1], sha256=sha256_of_weights(net))

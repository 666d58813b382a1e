"""One run from its settings: find everything, refuse what cannot work, then train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from itrd.data import load_dataset
from itrd.data.datasets import ImageDataset
from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.device import resolve_device
from itrd.engine.evaluate import evaluate
from itrd.engine.folder import RunFolder
from itrd.engine.networks import TrainedNetwork, load_network
from itrd.engine.record import Epoch, Result
from itrd.engine.task import DistillTask
from itrd.engine.trainer import Trainer
from itrd.errors import UserError
from itrd.methods import create_objective
from itrd.methods.objective import Objective
from itrd.models import create_model
from itrd.seeds import derive

Callbacks = Sequence[Callable[[Trainer, Epoch], None]]


def build_student(name: str, num_classes: int, seed: int) -> nn.Module:
    """Create a network whose initial weights are a function of the seed."""
    torch.manual_seed(derive(seed, "weights"))
    return create_model(name, num_classes)


def get_data(config: RunConfig, given: ImageDataset | None = None) -> ImageDataset:
    """Normalise a dataset as the settings ask for: the given one, or the one they name, cut to their subsets."""
    data = given
    if data is None:
        assert config.data is not None
        data = load_dataset(config.data, config.data_root, download=config.download)
        data = data.subset(config.train_subset, config.test_subset)
    return data.normalised(config.normalisation)


@contextmanager
def prepare_train(
    config: TrainConfig,
    callbacks: Callbacks = (),
    *,
    model: nn.Module | None = None,
    data: ImageDataset | None = None,
) -> Iterator[Trainer]:
    """Prepare training on labels alone. Network and data may be given instead of named.

    Raises:
        UserError: anything that cannot work, before a file is written.
    """
    resolved = config.resolved()
    assert isinstance(resolved, TrainConfig)
    resolve_device(resolved.device)
    if model is None:
        with torch.device("meta"):  # a wrong name is refused before the data is read
            create_model(resolved.model)
    folder = _folder(resolved)
    data = get_data(resolved, data)
    student = model or build_student(resolved.model, data.num_classes, resolved.seed)
    task = DistillTask(student, None, create_objective("none"))
    _bind(folder, data)
    trainer = Trainer(task, data, resolved, folder=folder, record={"kind": "train"}, callbacks=callbacks)
    with _opened(folder):
        yield trainer


@contextmanager
def prepare_distill(
    config: DistillConfig,
    callbacks: Callbacks = (),
    *,
    teacher: TrainedNetwork | None = None,
    student: nn.Module | None = None,
    data: ImageDataset | None = None,
    objective: Objective | None = None,
) -> Iterator[Trainer]:
    """Prepare distillation. Networks, data and objective may be given instead of named.

    Raises:
        UserError: anything that cannot work, before a file is written.
    """
    objective = objective or create_objective(config.method, config.ce_weight)
    if student is None:
        with torch.device("meta"):  # a wrong name is refused before the teacher is read
            create_model(config.student)
    teacher = teacher or load_network(config.teacher)
    if config.data is None and data is None:
        config = replace(config, data=data_of(teacher))
    resolved = config.resolved()
    assert isinstance(resolved, DistillConfig)
    resolve_device(resolved.device)
    folder = _folder(resolved)
    data = get_data(resolved, data)
    check_classes(teacher, data)
    check_normalisation(teacher, data)
    if student is teacher.net:
        raise UserError("teacher and student are the same module; give the student a module of its own")
    student_net = student or build_student(resolved.student, data.num_classes, resolved.seed)
    # bf16 rounds far more coarsely than folding does; fp32 stays the teacher's own arithmetic.
    fold = resolved.precision != "fp32"
    task = DistillTask(student_net, teacher.net, objective, resolved.track, fold_teacher=fold)
    record: dict[str, Any] = {
        "kind": "distill",
        "track": resolved.track,
        "teacher": {"arch": teacher.arch, "source": teacher.source, "sha256": teacher.sha256},
    }
    _bind(folder, data, teacher)
    trainer = Trainer(task, data, resolved, folder=folder, record=record, callbacks=callbacks)
    record["teacher"]["test"] = evaluate(teacher.net, trainer.test_images, resolved.precision)
    with _opened(folder):
        yield trainer


def run(config: RunConfig, callbacks: Callbacks = ()) -> Result:
    """Carry out a run described by its settings alone."""
    if isinstance(config, DistillConfig):
        with prepare_distill(config, callbacks) as trainer:
            return trainer.fit()
    assert isinstance(config, TrainConfig)
    with prepare_train(config, callbacks) as trainer:
        return trainer.fit()


def _folder(config: RunConfig) -> RunFolder | None:
    if config.out == "":
        return None
    folder = RunFolder(Path(config.out or Path("runs") / config.run_name()), config)
    folder.check()
    return folder


def _bind(folder: RunFolder | None, data: ImageDataset, teacher: TrainedNetwork | None = None) -> None:
    """Tie a run to the content of its data and teacher, which its settings only name."""
    if folder is not None:
        folder.inputs = {"data": data.fingerprint}
        if teacher is not None and teacher.sha256 is not None:
            folder.inputs["teacher"] = teacher.sha256


@contextmanager
def _opened(folder: RunFolder | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    folder.open()
    try:
        yield
    finally:
        folder.close()


def data_of(network: TrainedNetwork) -> str:
    """Name the dataset a network was trained on; the published teachers' files do not tell, and are CIFAR-100's.

    Raises:
        UserError: it cannot be told.
    """
    name = (network.data or "").partition("[")[0]
    if name:
        return name
    if network.num_classes == 100:
        return "cifar100"
    raise UserError(f"{network.source} does not say which dataset it was trained on; name it with --data")


def check_classes(network: TrainedNetwork, data: ImageDataset) -> None:
    """Refuse a network whose number of classes is not the dataset's.

    Raises:
        UserError: they differ.
    """
    if network.num_classes != data.num_classes:
        raise UserError(
            f"{network.source} has {network.num_classes} classes and {data.name} has {data.num_classes}; "
            "choose a network trained on this dataset, or another --data"
        )


def check_normalisation(network: TrainedNetwork, data: ImageDataset) -> None:
    """Refuse a network that was trained on images normalised otherwise.

    Raises:
        UserError: they differ.
    """
    if network.normalisation not in (None, data.normalisation):
        raise UserError(
            f"{network.source} was trained on images normalised with the {network.normalisation} mean and deviation; "
            f"add --normalisation {network.normalisation}, or choose another network"
        )

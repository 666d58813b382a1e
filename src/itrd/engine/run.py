"""One run from its settings: find everything, refuse what cannot work, then train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from itrd.data.datasets import ImageDataset, list_datasets
from itrd.data.opening import Reading, read_dataset
from itrd.engine import hubs
from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.device import resolve_device
from itrd.engine.evaluate import evaluate
from itrd.engine.files import sha256_of
from itrd.engine.folder import RunFolder
from itrd.engine.given import GivenLogits
from itrd.engine.networks import TrainedNetwork, load_network
from itrd.engine.record import Epoch, Result
from itrd.engine.task import DistillTask
from itrd.engine.team import Team, join
from itrd.engine.trainer import Trainer
from itrd.errors import UserError
from itrd.methods import create_objective
from itrd.methods.objective import Objective
from itrd.models import create_model, list_models
from itrd.models.adapt import Adapted
from itrd.seeds import derive

Callbacks = Sequence[Callable[[Trainer, Epoch], None]]


def size_for(network: str | None) -> int | None:
    """Return the side of the images that a network takes: 32 for those of this package; None where it is not fixed."""
    return 32 if network in list_models() else None


def build_student(name: str, num_classes: int, seed: int) -> nn.Module:
    """Create a network whose initial weights are a function of the seed."""
    return starting_network(name, num_classes, seed)[0]


def starting_network(name: str, num_classes: int, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Create a network to be trained; its fresh weights are a function of the seed.

    Returns:
        The network, and for the run's record where its weights come from, if they are not all fresh.
    """
    torch.manual_seed(derive(seed, "weights"))
    if not hubs.is_hub(name):
        return create_model(name, num_classes), {}
    hub = hubs.build(name, num_classes)
    return hub.net, {"student": {"arch": hub.arch, "source": hub.source, "sha256": hub.sha256}}


def check_name(name: str) -> None:
    """Refuse a wrong name of a network before anything is read.

    Raises:
        UserError: there is no such network.
    """
    if hubs.is_hub(name):
        hubs.check(name)
    else:
        with torch.device("meta"):
            create_model(name)


def get_data(config: RunConfig, given: Any = None, network: str | None = None) -> ImageDataset:
    """Read and normalise a dataset as the settings ask for.

    Args:
        config: the settings.
        given: an ImageDataset, which is taken whole; or another source of images (:mod:`itrd.data.opening`), or None
            for the one that the settings name, which are cut to their subsets.
        network: name of the network to be trained, if it is built by name: those of this package take 32 x 32 pixels,
            which then is the default size.

    Raises:
        DataError: it cannot be read.
    """
    settings = {field.name: getattr(config, field.name) for field in fields(Reading)}
    if config.image_size is None and not isinstance(given, ImageDataset):
        settings["image_size"] = size_for(network)
    reading = Reading(**settings)
    return read_dataset(
        config.data if given is None else given,
        reading,
        root=config.data_root,
        download=config.download,
        train_subset=config.train_subset,
        test_subset=config.test_subset,
    ).normalised(config.normalisation)


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
    team, config = join(config)
    resolved = config.resolved()
    assert isinstance(resolved, TrainConfig)
    resolve_device(resolved.device)
    if model is None:
        check_name(resolved.model)
    folder = team.lead(lambda: _folder(resolved))
    with team.one_by_machine():
        data = get_data(resolved, data, resolved.model if model is None else None)
    objective = create_objective("none")
    objective.expect_labels(data.labelled, data.name)
    lineage: dict[str, Any] = {}
    if model is None:
        model, lineage = starting_network(resolved.model, data.num_classes, resolved.seed)
    objective.label_smoothing = resolved.label_smoothing
    task = DistillTask(model, None, objective)
    _bind(folder, data)
    trainer = Trainer(
        task,
        data,
        resolved,
        folder=folder,
        record={"kind": "train", **lineage},
        callbacks=callbacks,
        team=team,
    )
    with _opened(folder, team):
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
    team, config = join(config)
    objective = objective or create_objective(config.method, config.ce_weight)
    if student is None:
        check_name(config.student)
    if config.teacher_logits is not None:
        with _prepare_given(config, callbacks, student, data, objective, team) as trainer:
            yield trainer
        return
    if not config.teacher and teacher is None:
        raise UserError("name a teacher with --teacher, or a file of its logits with --teacher_logits")
    with team.one_by_machine():
        teacher = teacher or load_network(config.teacher)
    if config.data is None and data is None:
        config = replace(config, data=data_of(teacher))
    config = sized_for(teacher, config, data)
    resolved = config.resolved()
    assert isinstance(resolved, DistillConfig)
    resolve_device(resolved.device)
    folder = team.lead(lambda: _folder(resolved))
    with team.one_by_machine():
        data = get_data(resolved, data, resolved.student if student is None else None)
    objective.expect_labels(data.labelled, data.name)
    if not data.num_classes:  # no image has a label
        data = replace(data, num_classes=teacher.num_classes)
    comparable = check_classes(teacher, data, objective)
    check_normalisation(teacher, data)
    if student is teacher.net:
        raise UserError("teacher and student are the same module; give the student a module of its own")
    teacher = adapted(teacher, data, resolved)
    lineage: dict[str, Any] = {}
    if student is None:
        student, lineage = starting_network(resolved.student, data.num_classes, resolved.seed)
    # bf16 rounds far more coarsely than folding does; fp32 stays the teacher's own arithmetic.
    fold = resolved.precision != "fp32"
    objective.label_smoothing = resolved.label_smoothing
    task = DistillTask(
        student,
        teacher.net,
        objective,
        resolved.track,
        fold_teacher=fold,
        student_taps=resolved.student_taps,
        teacher_taps=resolved.teacher_taps,
    )
    record: dict[str, Any] = {
        "kind": "distill",
        "track": resolved.track,
        "teacher": {"arch": teacher.arch, "source": teacher.source, "sha256": teacher.sha256},
        **lineage,
    }
    if isinstance(teacher.net, Adapted):
        record["teacher"]["images"] = teacher.net.describe()
    _bind(folder, data, teacher)
    trainer = Trainer(task, data, resolved, folder=folder, record=record, callbacks=callbacks, team=team)
    if task.taps is not None:
        record["taps"] = task.taps.rows()
    # A teacher of other classes has no accuracy on these labels.
    record["teacher"]["test"] = (
        evaluate(teacher.net, trainer.test_images, resolved.precision, team=team) if comparable else None
    )
    with _opened(folder, team):
        yield trainer


@contextmanager
def _prepare_given(
    config: DistillConfig,
    callbacks: Callbacks,
    student: nn.Module | None,
    data: ImageDataset | None,
    objective: Objective,
    team: Team,
) -> Iterator[Trainer]:
    """Prepare distillation from logits in a file; see :func:`prepare_distill`."""
    assert config.teacher_logits is not None
    given = GivenLogits(Path(config.teacher_logits))
    if config.data is None and data is None:
        raise UserError(f"{given.path} does not say which dataset its rows are of; name it with --data")
    resolved = config.resolved()
    assert isinstance(resolved, DistillConfig)
    resolve_device(resolved.device)
    folder = team.lead(lambda: _folder(resolved))
    with team.one_by_machine():
        data = get_data(resolved, data, resolved.student if student is None else None)
    objective.expect_labels(data.labelled, data.name)
    given.check(objective, data)
    data = data if data.num_classes else replace(data, num_classes=given.num_classes)
    lineage: dict[str, Any] = {}
    if student is None:
        student, lineage = starting_network(resolved.student, data.num_classes, resolved.seed)
    objective.label_smoothing = resolved.label_smoothing
    task = DistillTask(student, None, objective, resolved.track)
    sha256 = sha256_of(given.path)
    source = str(given.path)
    teacher: dict[str, Any] = {"arch": "given logits", "source": source, "sha256": sha256, "test": None}
    if data.labelled:
        teacher["agrees_with_labels"] = given.agreement(data.train.labels)
    record = {"kind": "distill", "track": resolved.track, "teacher": teacher, **lineage}
    _bind(folder, data)
    if folder is not None:
        folder.inputs["teacher"] = sha256
    trainer = Trainer(task, data, resolved, folder=folder, record=record, callbacks=callbacks, team=team)
    with _opened(folder, team):
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
def _opened(folder: RunFolder | None, team: Team) -> Iterator[None]:
    team.lead(lambda: None if folder is None else folder.open())
    try:
        yield
    finally:
        if folder is not None:
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


def check_classes(network: TrainedNetwork, data: ImageDataset, objective: Objective | None = None) -> bool:
    """Refuse a network of another number of classes than the dataset's, where that cannot work.

    Args:
        network: whose classes count.
        data: the dataset.
        objective: what is learned from the network; None where its own accuracy is asked for.

    Returns:
        Whether the numbers are equal, so that the network's accuracy on the dataset means something.

    Raises:
        UserError: they differ, and the objective reads the network's logits.
    """
    if network.num_classes == data.num_classes:
        return True
    if objective is None or "logits" in objective.reads:
        reason = "" if objective is None else f"{objective.describe()} compares logits class by class, but "
        advice = (
            ""
            if objective is None
            else ", or a method that reads no logits (itrd, crd, rkd, pkt, similarity, hint)"
        )
        raise UserError(
            f"{reason}{network.source} has {network.num_classes} classes and {data.name} has {data.num_classes}; "
            f"choose a network trained on this dataset, or another --data{advice}"
        )
    return False


def adapted(teacher: TrainedNetwork, data: ImageDataset, config: DistillConfig) -> TrainedNetwork:
    """Put a converter of images before a teacher that expects others than the student gets.

    What it expects is what the settings say, or else its library; where neither does, the student's images.

    Raises:
        UserError: mean or deviation is not one for each channel.
    """
    said = teacher.preprocessing or hubs.Preprocessing()
    size = said.size if config.teacher_size is None else config.teacher_size
    mean = tuple(config.teacher_mean or said.mean or data.mean)
    std = tuple(config.teacher_std or said.std or data.std)
    if not len(mean) == len(std) == len(data.mean):
        raise UserError(
            f"teacher_mean and teacher_std need a number for each of the {len(data.mean)} channels of {data.name}, "
            f"got {list(mean)} and {list(std)}"
        )
    if size is None and (mean, std) == (tuple(data.mean), tuple(data.std)):
        return teacher
    net = Adapted(teacher.net, mean=data.mean, std=data.std, net_mean=mean, net_std=std, size=size)
    return replace(teacher, net=net.eval())


def sized_for(teacher: TrainedNetwork, config: DistillConfig, data: Any) -> DistillConfig:
    """Bring images to the size that the teacher was trained on, where neither settings nor dataset have one."""
    has_size = isinstance(data, ImageDataset) or config.data in list_datasets()
    if has_size or config.image_size is not None or teacher.image_size is None:
        return config
    return replace(config, image_size=teacher.image_size)


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

"""One run from its settings: find everything, refuse what cannot work, then train."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from os.path import realpath
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


def given_network(role: str, net: Any, *, names: bool = True) -> Any:
    """Return a network that is given in Python, or as text where its name, folder or file is given.

    Args:
        role: what an error calls it.
        net: what is given.
        names: whether text is accepted.

    Raises:
        UserError: it is neither.
    """
    if isinstance(net, nn.Module):
        return net
    if names and isinstance(net, (str, os.PathLike)):
        return os.fspath(net)
    what, advice = type(net).__name__, ""
    if isinstance(net, type):
        what, advice = f"the class {net.__name__}", f"; make one with {net.__name__}(...)"
    elif isinstance(net, Result):
        advice = "; the trained network is its .student"
    elif isinstance(net, Mapping):
        advice = "; load weights into a network with load_state_dict() and give that"
    accepted = "a network (torch.nn.Module)" + ", or a name or path of one" * names
    raise UserError(f"the {role} must be {accepted}, not {what}{advice}")


def check_name(name: str) -> None:
    """Refuse a wrong name of a network before anything is read.

    Raises:
        UserError: there is no such network.
    """
    if hubs.is_hub(name):
        hubs.check(name)
    else:
        hubs.check_prefix(name)
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


def get_test_data(
    network: TrainedNetwork,
    data: Any = None,
    *,
    root: str = "data",
    download: bool = False,
    normalisation: str | None = None,
    **settings: Any,
) -> ImageDataset:
    """Read images to test a trained network on, as those of its training were read where it tells.

    Args:
        network: what is to be tested.
        data: a source of images (:mod:`itrd.data.opening`); None for the dataset that the network's file names.
        root, download: as of :func:`itrd.data.opening.read_dataset`.
        normalisation: ``dataset`` or ``imagenet``; None for what the file says.
        settings: of :class:`itrd.data.opening.Reading`; None for what the file says.

    Raises:
        UserError: the network has other classes, or was trained on some of the test images.
        DataError: the images cannot be read.
    """
    source = data_of(network) if data is None else data
    asked = {key: value for key, value in settings.items() if value is not None}
    if not isinstance(source, ImageDataset):
        by_name = isinstance(source, (str, os.PathLike)) and was_trained_on(network, os.fspath(source))
        usual = {"image_size": network.image_size or size_for(network.arch)}
        asked = {**usual, **(network.reading if by_name else {}), **asked}
    dataset = read_dataset(source, Reading(**asked), root=root, download=download, train=False)
    check_classes(network, dataset)
    check_held_out(network, dataset)
    return dataset.normalised(normalisation or network.normalisation or dataset.normalisation)


def find_teacher(
    config: DistillConfig, given: TrainedNetwork | None = None, data: Any = None
) -> tuple[DistillConfig, TrainedNetwork]:
    """Load the teacher that the settings name, and complete them by what it says of its images: dataset, size.

    Args:
        config: the settings.
        given: a teacher that is there already.
        data: a source of images that is there already; None for the one that the settings name.

    Raises:
        UserError: no teacher is named, or it does not tell its dataset and the settings do not either.
    """
    if not config.teacher and given is None:
        raise UserError("name a teacher with --teacher, or a file of its logits with --teacher_logits")
    teacher = given or load_network(config.teacher)
    if config.data is None and data is None:
        config = replace(config, data=data_of(teacher))
    return sized_for(teacher, config, data), teacher


@contextmanager
def prepare_train(
    config: TrainConfig,
    callbacks: Callbacks = (),
    *,
    model: nn.Module | None = None,
    data: Any = None,
) -> Iterator[Trainer]:
    """Prepare training on labels alone. Network and data may be given instead of named.

    Raises:
        UserError: anything that cannot work, before a file is written.
    """
    team, config = join(config)
    config = config.resolved()
    if model is None:
        check_name(config.model)
    objective = create_objective("none")
    folder, data = _folder_and_data(config, team, objective, data, None if model else config.model)
    model, lineage = _student(model, data, config)
    record = {"kind": "train", **lineage}
    task = DistillTask(model, None, objective)
    trainer = Trainer(task, data, config, folder=folder, record=record, callbacks=callbacks, team=team)
    with _opened(folder, team):
        yield trainer


@contextmanager
def prepare_distill(
    config: DistillConfig,
    callbacks: Callbacks = (),
    *,
    teacher: TrainedNetwork | None = None,
    student: nn.Module | None = None,
    data: Any = None,
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
    with team.one_by_machine():
        config, teacher = find_teacher(config, teacher, data)
    config = config.resolved()
    folder, data = _folder_and_data(config, team, objective, data, None if student else config.student)
    if not data.num_classes:  # no image has a label
        data = replace(data, num_classes=teacher.num_classes)
    comparable = check_classes(teacher, data, objective)
    check_normalisation(teacher, data)
    check_held_out(teacher, data)
    if student is teacher.net:
        raise UserError("teacher and student are the same module; give the student a module of its own")
    teacher = adapted(teacher, data, config)
    student, lineage = _student(student, data, config)
    task = DistillTask(
        student,
        teacher.net,
        objective,
        config.track,
        # bf16 rounds far more coarsely than folding does; fp32 stays the teacher's own arithmetic.
        fold_teacher=config.precision != "fp32",
        student_taps=config.student_taps,
        teacher_taps=config.teacher_taps,
    )
    source: dict[str, Any] = {"arch": teacher.arch, "source": teacher.source, "sha256": teacher.sha256}
    if isinstance(teacher.net, Adapted):
        source["images"] = teacher.net.describe()
    record = {"kind": "distill", "track": config.track, "teacher": source, **lineage}
    _bind(folder, teacher.sha256)
    trainer = Trainer(task, data, config, folder=folder, record=record, callbacks=callbacks, team=team)
    if task.taps is not None:
        trainer.record["taps"] = task.taps.rows()
    # A teacher of other classes has no accuracy on these labels.
    trainer.record["teacher"]["test"] = (
        evaluate(teacher.net, trainer.test_images, config.precision, team=team) if comparable else None
    )
    with _opened(folder, team):
        yield trainer


@contextmanager
def _prepare_given(
    config: DistillConfig,
    callbacks: Callbacks,
    student: nn.Module | None,
    data: Any,
    objective: Objective,
    team: Team,
) -> Iterator[Trainer]:
    """Prepare distillation from logits in a file; see :func:`prepare_distill`."""
    assert config.teacher_logits is not None
    given = GivenLogits(Path(config.teacher_logits))
    if config.data is None and data is None:
        raise UserError(f"{given.path} does not say which dataset its rows are of; name it with --data")
    config = config.resolved()
    folder, data = _folder_and_data(config, team, objective, data, None if student else config.student)
    given.check(objective, data)
    data = data if data.num_classes else replace(data, num_classes=given.num_classes)
    student, lineage = _student(student, data, config)
    sha256 = sha256_of(given.path)
    teacher: dict[str, Any] = {
        "arch": "given logits",
        "source": str(given.path),
        "sha256": sha256,
        "test": None,
    }
    if data.labelled:
        teacher["agrees_with_labels"] = given.agreement(data.train.labels)
    record = {"kind": "distill", "track": config.track, "teacher": teacher, **lineage}
    _bind(folder, sha256)
    task = DistillTask(student, None, objective, config.track)
    trainer = Trainer(task, data, config, folder=folder, record=record, callbacks=callbacks, team=team)
    with _opened(folder, team):
        yield trainer


def prepare(config: RunConfig, callbacks: Callbacks = ()) -> AbstractContextManager[Trainer]:
    """Prepare a run that is described by its settings alone, training or distillation."""
    if isinstance(config, DistillConfig):
        return prepare_distill(config, callbacks)
    assert isinstance(config, TrainConfig)
    return prepare_train(config, callbacks)


def _folder_and_data(
    config: RunConfig, team: Team, objective: Objective, given: Any, network: str | None
) -> tuple[RunFolder | None, ImageDataset]:
    """Find what settings name, and refuse what cannot be: the cheapest first."""
    resolve_device(config.device)
    _check_loss(objective, config.label_smoothing)
    folder = team.lead(lambda: _folder(config))
    with team.one_by_machine():
        data = get_data(config, given, network)
    objective.expect_labels(data.labelled, data.name)
    if folder is not None:
        folder.inputs = {"data": data.fingerprint}
    return folder, data


def _check_loss(objective: Objective, asked: float) -> None:
    if not objective.ce_weight and not any(objective.weights):
        raise UserError(f"the loss {objective.describe()} is always 0; give something a weight")
    own = objective.label_smoothing
    if own not in (0, asked):
        raise UserError(
            f"the objective smooths labels by {own} and the settings by {asked}; give label_smoothing={own}, which is "
            "recorded, or set the objective's to 0"
        )
    objective.label_smoothing = asked


def _student(
    given: nn.Module | None, data: ImageDataset, config: RunConfig
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network to train, and where its weights come from, as :func:`starting_network`."""
    if given is not None:
        return given, {}
    return starting_network(config.trained_model, data.num_classes, config.seed)


def _folder(config: RunConfig) -> RunFolder | None:
    if config.out == "":
        return None
    folder = RunFolder(Path(config.out or Path("runs") / config.run_name()), config)
    folder.check()
    return folder


def _bind(folder: RunFolder | None, teacher: str | None) -> None:
    """Tie a run to the content of its teacher, which its settings only name."""
    if folder is not None and teacher is not None:
        folder.inputs["teacher"] = teacher


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
    name = _whole(network.data or "")
    if name:
        return name
    if network.num_classes == 100:
        return "cifar100"
    raise UserError(f"{network.source} does not say which dataset it was trained on; name it with --data")


def was_trained_on(network: TrainedNetwork, data: str) -> bool:
    """Whether a network's file says that it was trained on (a part of) this dataset, by name or by path."""
    return network.data is not None and realpath(_whole(network.data)) == realpath(_whole(data))


def _whole(name: str) -> str:
    """Name of the dataset of which ``NAME[train=2000]`` is a part."""
    return name.partition("[")[0]


def check_classes(network: TrainedNetwork, data: ImageDataset, objective: Objective | None = None) -> bool:
    """Refuse a network of another number of classes than the dataset's, where that cannot work.

    Args:
        network: whose classes count.
        data: the dataset.
        objective: what is learned from the network; None where its own accuracy is asked for.

    Returns:
        Whether the numbers are equal, so that the network's accuracy on the dataset means something.

    Raises:
        UserError: they differ, or the classes come in another order, and the objective reads the network's logits.
    """
    if network.num_classes == data.num_classes:
        if objective is None or "logits" in objective.reads:
            _check_order(network, data)
        return True
    if objective is None or "logits" in objective.reads:
        given = network.source == "given"
        source = f"the given teacher ({network.arch})" if given else network.source
        reason = "" if objective is None else f"{objective.describe()} compares logits class by class, but "
        advice = (
            ""
            if objective is None
            else ", or a method that reads no logits (itrd, crd, rkd, pkt, similarity, hint)"
        )
        raise UserError(
            f"{reason}{source} has {network.num_classes} classes and {data.name} has {data.num_classes}; "
            f"choose a network trained on this dataset, or another --data{advice}"
        )
    return False


def _check_order(network: TrainedNetwork, data: ImageDataset) -> None:
    """Refuse a network that gives a class another number than the dataset does; other names alone are no matter."""
    numbers = {name: number for number, name in enumerate(network.class_names)}
    for number, name in enumerate(data.class_names):
        if numbers.get(name, number) != number:
            raise UserError(
                f"class {name!r} is number {numbers[name]} for {network.source} and number {number} in {data.name}; "
                "give the classes of the data the names that they had in training"
            )


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


def check_held_out(network: TrainedNetwork, data: ImageDataset) -> None:
    """Refuse to test a network on images that it was trained on, which happens where more are held out than then.

    Raises:
        UserError: some of the test images were among its training images.
    """
    then, now = network.reading.get("val_fraction"), data.facts.get("val_fraction")
    if was_trained_on(network, data.name) and then is not None and now is not None and now > then:
        raise UserError(
            f"{network.source} was trained with {then:g} of each class held out for the test, and now it is {now:g}: "
            f"some of these test images were trained on; use --val_fraction {then:g}"
        )

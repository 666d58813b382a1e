"""What a run needs from outside, images and a trained network, and whether they belong together."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from os.path import realpath
from typing import Any

import numpy as np

from itrd.data.datasets import ImageDataset, list_datasets
from itrd.data.opening import Reading, open_dataset, read_dataset, whole_for_the_test
from itrd.data.resident import bring_in
from itrd.engine import hubs
from itrd.engine.config import DistillConfig, RunConfig
from itrd.engine.networks import TrainedNetwork, load_network, misnumbered
from itrd.errors import DataError, UserError
from itrd.methods.objective import Objective
from itrd.models import list_models
from itrd.models.adapt import Adapted


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
    data = read_dataset(
        config.data if given is None else given,
        reading,
        root=config.data_root,
        download=config.download,
        train_subset=config.train_subset,
        test_subset=config.test_subset,
    )
    if not len(data.train):
        raise DataError(
            f"{data.name} has no images to train on; give some, in a folder or under a key called train"
        )
    return data.normalised(config.normalisation)


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

    Of images that are not divided into those for training and those for the test, the part that was held out is taken
    if the network's file says that it was trained on the rest, or if a fraction is asked for; otherwise all are.

    Args:
        network: what is to be tested.
        data: a source of images (:mod:`itrd.data.opening`); None for the dataset that the network's file names.
        root, download: as of :func:`itrd.data.opening.read_dataset`.
        normalisation: ``dataset`` or ``imagenet``; None for what the file says.
        settings: of :class:`itrd.data.opening.Reading`; None for what the file says.

    Raises:
        UserError: there are no labelled test images, or the network has other classes or was trained on some of them.
        DataError: the images cannot be read.
    """
    source = data_of(network) if data is None else data
    asked = {key: value for key, value in settings.items() if value is not None}
    if isinstance(source, ImageDataset):
        dataset = read_dataset(source, Reading(**asked), root=root, download=download, train=False)
    else:
        by_name = isinstance(source, (str, os.PathLike)) and was_trained_on(network, os.fspath(source))
        usual = {"image_size": network.image_size or size_for(network.arch)}
        divided = by_name and source not in list_datasets()  # these have test images of their own
        reading = Reading(**{**usual, **(network.reading if divided else {}), **asked})
        found = open_dataset(source, reading, root=root, download=download)
        if (
            "undivided" in found.facts
            and "val_fraction" not in asked
            and not (by_name or _saw(network, found))
        ):
            found = whole_for_the_test(found)
        dataset = bring_in(replace(found, train=found.train.take(np.empty(0, np.int64))), reading)
    if not len(dataset.test):
        raise UserError(f"{dataset.name} has no labelled test images to measure an accuracy on; give some")
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


def check_named(config: DistillConfig, data: Any) -> None:
    """Refuse logits in a file without a dataset, of which they do not tell.

    Raises:
        UserError: no dataset is named or given.
    """
    if config.teacher_logits is not None and config.data is None and data is None:
        raise UserError(
            f"{config.teacher_logits} does not say which dataset its rows are of; name it with --data"
        )


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


def _saw(network: TrainedNetwork, data: ImageDataset) -> bool:
    """Whether a network was trained on a part of a dataset that Python holds; older files tell its class alone."""
    if network.undivided is None:
        return network.data == data.name
    return network.undivided == data.facts["undivided"]


def _whole(name: str) -> str:
    """Name of the dataset of which ``NAME[train=2000]`` is a part."""
    return name.partition("[")[0]


def size_for(network: str | None) -> int | None:
    """Return the side of the images that a network takes: 32 for those of this package; None where it is not fixed."""
    return 32 if network is not None and network.partition(":")[0] in list_models() else None


def sized_for(teacher: TrainedNetwork, config: DistillConfig, data: Any) -> DistillConfig:
    """Bring images to the size that the teacher was trained on, where neither settings nor dataset have one."""
    has_size = isinstance(data, ImageDataset) or config.data in list_datasets()
    if has_size or config.image_size is not None or teacher.image_size is None:
        return config
    return replace(config, image_size=teacher.image_size)


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
    """Refuse a network that gives a class another number than the dataset does; other names alone are no matter.

    Raises:
        UserError: it does.
    """
    name = misnumbered(network, data.class_names)
    if name is not None:
        raise UserError(
            f"class {name!r} is number {network.class_names.index(name)} for {network.source} and number "
            f"{data.class_names.index(name)} in {data.name}; give the classes of the data the names that they had in "
            "training"
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


def check_held_out(network: TrainedNetwork, data: ImageDataset) -> None:
    """Refuse to test a network on images that it was trained on, which happens where more are held out than then.

    Raises:
        UserError: some of the test images were among its training images.
    """
    then, now = network.reading.get("val_fraction"), data.facts.get("val_fraction")
    if then is None or now is None or now <= then:
        return
    # Different datasets in Python may be of one class, which is all of a name that they have.
    if (
        network.undivided == data.facts["undivided"]
        if network.undivided
        else was_trained_on(network, data.name)
    ):
        raise UserError(
            f"{network.source} was trained with {then:g} of each class held out for the test, and now it is {now:g}: "
            f"some of these test images were trained on; use --val_fraction {then:g}"
        )

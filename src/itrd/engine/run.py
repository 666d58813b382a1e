"""One run from its settings: find everything, refuse what cannot work, then train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from itrd.data.datasets import ImageDataset
from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.device import resolve_device
from itrd.engine.evaluate import evaluate
from itrd.engine.folder import RunFolder
from itrd.engine.given import GivenLogits
from itrd.engine.inputs import (
    adapted,
    check_classes,
    check_held_out,
    check_named,
    check_normalisation,
    find_teacher,
    get_data,
)
from itrd.engine.networks import TrainedNetwork, check_name, misnumbered, starting_network
from itrd.engine.record import Epoch
from itrd.engine.task import DistillTask
from itrd.engine.team import Team, join
from itrd.engine.trainer import Trainer
from itrd.errors import UserError, first_line
from itrd.files import sha256_of
from itrd.methods import create_objective
from itrd.methods.objective import Objective
from itrd.models.adapt import Adapted

Callbacks = Sequence[Callable[[Trainer, Epoch], None]]


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
    model, lineage = _student(model, data, config, folder)
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
    # A given one stays what it is: a run writes into its objective, and trains the methods' modules.
    objective = _copied(objective) or create_objective(config.method, config.ce_weight)
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
    student, lineage = _student(student, data, config, folder)
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
    _bind(folder, "teacher", teacher.sha256)
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
    check_named(config, data)
    config = config.resolved()
    folder, data = _folder_and_data(config, team, objective, data, None if student else config.student)
    given.check(objective, data)
    data = data if data.num_classes else replace(data, num_classes=given.num_classes)
    student, lineage = _student(student, data, config, folder)
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
    _bind(folder, "teacher", sha256)
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
    _check_weights(objective)
    _smooth_labels(objective, config.label_smoothing)
    folder = team.lead(lambda: _folder(config))
    with team.one_by_machine():
        data = get_data(config, given, network)
    objective.expect_labels(data.labelled, data.name)
    if folder is not None:
        folder.inputs = {"data": data.fingerprint}
    return folder, data


def _copied(objective: Objective | None) -> Objective | None:
    try:
        return copy.deepcopy(objective)
    except Exception as error:  # of whatever a method of the user's holds
        assert objective is not None
        raise UserError(
            f"every run takes a copy of its methods, and {objective.describe()} cannot be copied "
            f"({first_line(error)}); give its class a __deepcopy__, or make what cannot be copied in setup()"
        ) from None


def _check_weights(objective: Objective) -> None:
    if not objective.ce_weight and not any(objective.weights):
        raise UserError(f"the loss {objective.describe()} is always 0; give something a weight")


def _smooth_labels(objective: Objective, asked: float) -> None:
    """Give a run's objective the label smoothing of its settings."""
    own = objective.label_smoothing
    if own not in (0, asked):
        raise UserError(
            f"the objective smooths labels by {own} and the settings by {asked}; give label_smoothing={own}, which is "
            "recorded, or set the objective's to 0"
        )
    objective.label_smoothing = asked


def _student(
    given: nn.Module | None, data: ImageDataset, config: RunConfig, folder: RunFolder | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network to train, and for the record where its weights come from, if they are not all fresh."""
    if given is not None:
        return given, {}
    start = starting_network(config.trained_model, data.num_classes, config.seed, data.class_names)
    if start.sha256 is None:
        return start.net, {}
    check_normalisation(start, data)
    check_held_out(start, data)
    _bind(folder, "first weights", start.sha256)
    origin = {
        "arch": start.arch,
        "source": start.source,
        "sha256": start.sha256,
        "num_classes": start.num_classes,
        **({"renumbered": True} if misnumbered(start, data.class_names) else {}),
    }
    return start.net, {"student": origin}


def _folder(config: RunConfig) -> RunFolder | None:
    if config.out == "":
        return None
    folder = RunFolder(Path(config.out or Path("runs") / config.run_name()), config)
    folder.check()
    return folder


def _bind(folder: RunFolder | None, role: str, sha256: str | None) -> None:
    """Tie a run to the content of its teacher, or of the student's first weights, which its settings only name."""
    if folder is not None and sha256 is not None:
        folder.inputs[role] = sha256


@contextmanager
def _opened(folder: RunFolder | None, team: Team) -> Iterator[None]:
    team.lead(lambda: None if folder is None else folder.open())
    try:
        yield
    finally:
        if folder is not None:
            folder.close()

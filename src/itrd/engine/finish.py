"""The end of a run: weights of the last epoch, the record, the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from itrd.engine.checkpoint import read_weights
from itrd.engine.folder import RunFolder
from itrd.engine.record import Result, build_record
from itrd.engine.state import save_student
from itrd.errors import CheckpointError
from itrd.files import read_json, write_json

if TYPE_CHECKING:
    from itrd.engine.trainer import Trainer


def finish(trainer: Trainer) -> Result:
    """Write what a finished run leaves behind, and return it."""
    assert trainer.best is not None
    last, student = trainer.history[-1], trainer.task.student
    record = build_record(
        trainer.config,
        trainer.task,
        trainer.data,
        str(trainer.device),
        trainer.history,
        trainer.first_stages,
        trainer.best,
        {**trainer.record, "provenances": trainer.provenances},
        processes=trainer.team.size,
    )
    if trainer.folder is not None:
        for which, net in _networks(trainer):
            save_student(trainer.folder, which, net, trainer.data, last)
        write_json(trainer.folder.result, record)
    return Result(last, trainer.best, trainer.history, student, record)


def _networks(trainer: Trainer) -> list[tuple[str, nn.Module]]:
    """The networks that a finished run leaves, each with the name of its file."""
    average = [] if trainer.average is None else [("ema", trainer.average.net)]
    return [("last", trainer.task.student), *average]


def finished_before(trainer: Trainer, folder: RunFolder) -> Result:
    """The result of a run that was finished already; its record is left as it is.

    Weights of the last epoch, and their average, that are missing or damaged are written again: the checkpoint has
    them. It has not those of the best epoch.
    """
    assert trainer.best is not None
    for which, net in _networks(trainer):
        try:
            read_weights(folder.path / f"{which}.safetensors")
        except CheckpointError:
            save_student(folder, which, net, trainer.data, trainer.history[-1])
    try:
        record = read_json(folder.result)
    except ValueError:  # damaged; everything it said is known
        return finish(trainer)
    return Result(trainer.history[-1], trainer.best, trainer.history, trainer.task.student, record)

"""Training and distillation from the command line: what is printed before and after."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from itrd.engine.config import DistillConfig, RunConfig
from itrd.engine.launch import launched
from itrd.engine.metrics import accuracy_text
from itrd.engine.record import Result, label_of
from itrd.engine.run import prepare
from itrd.engine.trainer import Trainer
from itrd.errors import UserError


def carry_out(config: RunConfig) -> int:
    """Run, and return the exit status; of several processes the first one prints."""
    with nullcontext() if launched().rank == 0 else redirect_stdout(io.StringIO()):
        return _carry_out(config)


def _carry_out(config: RunConfig) -> int:
    if config.profile is not None:
        return _profile(config, Path(config.profile))
    if isinstance(config, DistillConfig) and (config.control or config.seeds > 1):
        return _compare(config)
    with prepare(config) as trainer:
        _fit(trainer)
    return 0


def _compare(config: DistillConfig) -> int:
    from itrd.engine.control import COMPARISON, run_seeds

    found = run_seeds(config, fit=_fit)
    print(found)
    if found.folder is not None:
        print(f"written to {found.folder / COMPARISON}")
    return 0


def _teacher(trainer: Trainer) -> None:
    """Print what is known of the teacher, and what is read of it."""
    teacher = trainer.record["teacher"]
    test = teacher["test"]
    if test:
        accuracy = f"{test['top1']:.2f}%"
    else:
        accuracy = (
            "no accuracy without labelled test images" if test == {} else "has other classes, so no accuracy"
        )
    print(f"teacher {teacher['arch']}: {accuracy} on {trainer.data.name}")
    if "images" in teacher:
        expects = teacher["images"]
        size = "" if expects["size"] is None else f"resized to {expects['size']}x{expects['size']}, "
        print(f"its images: {size}normalised with mean {expects['mean']}, deviation {expects['std']}")
    if trainer.task.taps is not None:
        print(trainer.task.taps)


def _fit(trainer: Trainer) -> Result:
    config = trainer.config
    if trainer.data.facts:
        print(_images(trainer))
    if trainer.task.teacher is not None:
        _teacher(trainer)
    elif "agrees_with_labels" in trainer.record.get("teacher", {}):
        print(
            f"the given logits agree with {trainer.record['teacher']['agrees_with_labels']:.2f}% of the labels"
        )
    print(
        f"{config.trained_model} on {trainer.data.name}, {trainer.task.objective.describe()}, "
        f"{config.epochs} epoch{'s' * (config.epochs > 1)}, "
        f"{trainer.device}, {config.precision}, "
        f"{label_of(config, trainer.data, processes=trainer.team.size)} schedule",
        flush=True,
    )
    if "student" in trainer.record:
        print(_start(trainer.record["student"], trainer.data.num_classes), flush=True)
    result = trainer.fit()
    _summary(trainer, result)
    return result


def _start(student: Mapping[str, Any], classes: int) -> str:
    held = student["num_classes"]
    afresh = ""
    if held != classes:
        afresh = f"; its classifier starts afresh: {held} classes there, {classes} here"
    elif student.get("renumbered"):
        afresh = "; its classifier starts afresh: the classes have other numbers here"
    return f"starts from {student['source']}{afresh}"


def _profile(config: RunConfig, trace: Path) -> int:
    from itrd.engine.profile import profile_run

    if launched().size > 1:
        raise UserError("profile records one process; start it without torchrun")
    if not trace.parent.is_dir():
        raise UserError(f"cannot write the trace {trace}: there is no folder {trace.parent}")
    found = profile_run(config, trace)
    whole = sum(found.milliseconds.values())
    print(f"one step of batch {config.batch_size}, mean of {found.steps}: {whole:.1f} ms, of which")
    for part, milliseconds in found.milliseconds.items():
        print(f"  {part:22} {milliseconds:8.2f} ms  {100 * milliseconds / whole:5.1f}%")
    print(f"trace: {found.trace} (open it in Perfetto or chrome://tracing)")
    return 0


def _images(trainer: Trainer) -> str:
    """Say what was read and how: much of it was chosen, not asked for."""
    data = trainer.data
    facts = {"classes": data.num_classes, **data.facts}
    kept = ("read in every epoch", "kept in memory")[trainer.train_images.resident]
    told = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if value is not None
    )
    return (
        f"{data.name}: {len(data.train):,} training images ({kept}), {len(data.test):,} test images, {told}"
    )


def _summary(trainer: Trainer, result: Result) -> None:
    last, best = result.last, result.best
    if last.test:
        print(
            f"{accuracy_text(last.test, trainer.data.num_classes)} after the last epoch "
            f"(best epoch, chosen on the test set: {best.test['top1']:.2f}% in epoch {best.epoch})"
        )
        if last.ema:
            print(f"{accuracy_text(last.ema, trainer.data.num_classes)} of the weights' moving average")
    else:
        print("no labelled test images, so no accuracy")
    if trainer.folder is not None:
        print(f"written to {trainer.folder.path}")

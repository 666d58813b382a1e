"""Training and distillation from the command line: what is printed before and after."""

from __future__ import annotations

from pathlib import Path

from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.record import Result
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.trainer import Trainer
from itrd.errors import UserError


def carry_out(config: RunConfig) -> int:
    """Run, and return the exit status."""
    if config.profile is not None:
        return _profile(config, Path(config.profile))
    if isinstance(config, DistillConfig):
        with prepare_distill(config) as trainer:
            teacher = trainer.record["teacher"]
            print(f"teacher {teacher['arch']}: {teacher['test']['top1']:.2f}% on {trainer.data.name}")
            return _fit(trainer)
    assert isinstance(config, TrainConfig)
    with prepare_train(config) as trainer:
        return _fit(trainer)


def _fit(trainer: Trainer) -> int:
    config = trainer.config
    print(
        f"{config.trained_model} on {trainer.data.name}, {trainer.task.objective.describe()}, {config.epochs} epochs, "
        f"{trainer.device}, {config.precision}, {config.protocol()} schedule",
        flush=True,
    )
    result = trainer.fit()
    _summary(trainer, result)
    return 0


def _profile(config: RunConfig, trace: Path) -> int:
    from itrd.engine.profile import profile_run

    if not trace.parent.is_dir():
        raise UserError(f"cannot write the trace {trace}: there is no folder {trace.parent}")
    found = profile_run(config, trace)
    whole = sum(found.milliseconds.values())
    print(f"one step of batch {config.batch_size}, mean of {found.steps}: {whole:.1f} ms, of which")
    for part, milliseconds in found.milliseconds.items():
        print(f"  {part:22} {milliseconds:8.2f} ms  {100 * milliseconds / whole:5.1f}%")
    print(f"trace: {found.trace} (open it in Perfetto or chrome://tracing)")
    return 0


def _summary(trainer: Trainer, result: Result) -> None:
    last, best = result.last, result.best
    print(
        f"top-1 {last.test['top1']:.2f}%, top-5 {last.test['top5']:.2f}% after the last epoch "
        f"(best epoch, chosen on the test set: {best.test['top1']:.2f}% in epoch {best.epoch})"
    )
    if trainer.folder is not None:
        print(f"written to {trainer.folder.path}")

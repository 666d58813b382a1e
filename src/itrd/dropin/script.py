"""What both scripts share: one run with the originals' console output, and errors in one line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from itrd.data import describe_dataset
from itrd.dropin.files import OriginalFiles
from itrd.engine.config import RunConfig
from itrd.engine.interrupt import Interrupted, stop_on_signals
from itrd.engine.launch import launched
from itrd.engine.run import Callbacks
from itrd.engine.trainer import Epoch, Trainer
from itrd.errors import DataError, RunFolderError, TrainingError, UserError

Prepare = Callable[[Callbacks], AbstractContextManager[Trainer]]


def guarded(prog: str, work: Callable[[], None]) -> int:
    """Do the work and return the exit status; what a user can mend becomes one line on standard error."""
    try:
        with stop_on_signals():
            work()
    except UserError as error:
        return _complain(prog, _in_our_words(error), 2)
    except TrainingError as error:
        return _complain(prog, str(error), 1)
    except Interrupted as stop:
        advice = "; the same command with --resume continues" if stop.resumable else ""
        return _complain(prog, f"{stop}{advice}", stop.status)
    return 0


def common_settings(opt: argparse.Namespace) -> dict[str, Any]:
    """Engine settings that all scripts give in the same words."""
    return {
        "data": opt.dataset,
        "data_root": opt.data_root,
        "download": True,
        "epochs": opt.epochs,
        "batch_size": opt.batch_size,
        "learning_rate": opt.learning_rate,
        "milestones": sorted(opt.lr_decay_epochs),
        "lr_decay": opt.lr_decay_rate,
        "momentum": opt.momentum,
        "weight_decay": opt.weight_decay,
        "seed": opt.seed,
        "device": opt.device,
        "precision": opt.precision,
        "out": str(Path(opt.save_folder) / "run"),
        "resume": opt.resume,
        "deterministic": opt.deterministic,
        "on_nonfinite": opt.on_nonfinite,
        "tensorboard": False,  # the originals' scalars are written instead
        # A live bar for people; in a pipe or a file, the originals' lines.
        "progress": sys.stdout.isatty() and sys.stderr.isatty(),
    }


def carry_out(
    opt: argparse.Namespace,
    config: RunConfig,
    files: OriginalFiles,
    prepare: Prepare,
    started: Callable[[Trainer], None] = lambda trainer: None,
) -> None:
    """Train, writing and printing as the original scripts do.

    Raises:
        UserError: something that the user can mend.
        Interrupted: the run was asked to stop; its state is saved.
    """
    if launched().size > 1:
        raise UserError(
            "the original scripts run as one process; several GPUs train with "
            "`torchrun --nproc_per_node=N -m itrd distill` (or train)"
        )
    _check_folder(opt)

    def tell(trainer: Trainer, epoch: Epoch) -> None:
        if not config.progress:
            print(
                f"epoch {epoch.epoch}, total time {epoch.seconds:.2f} "
                f"* Acc@1 {epoch.test['top1']:.3f} Acc@5 {epoch.test['top5']:.3f}",
                flush=True,
            )

    with prepare([tell, files.after_epoch]) as trainer:
        if opt.resume:
            print(f"resuming the run in {opt.save_folder}")
        started(trainer)
        try:
            result = trainer.fit()
            files.finish(trainer)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunFolderError(f"cannot write into {opt.save_folder}: {reason}; mend this") from None
        finally:
            files.close()
    print("best accuracy:", f"{result.best.test['top1']:.4f}")
    print("last accuracy:", f"{result.last.test['top1']:.4f} (the figure that published tables show)")


def _check_folder(opt: argparse.Namespace) -> None:
    """Refuse to overwrite a run, where the originals would."""
    held = (Path(opt.save_folder) / "run" / "config.yaml").exists()
    if held and not opt.resume:
        raise UserError(
            f"{opt.save_folder} already holds a run; continue it with --resume, choose another --trial, "
            "or delete the folder"
        )
    if opt.resume and not held:
        raise UserError(f"nothing to resume: {opt.save_folder} holds no run; leave out --resume to start one")


def _in_our_words(error: UserError) -> str:
    text = str(error)
    if isinstance(error, RunFolderError):  # these scripts have no --out
        text = re.sub(r"choose another (folder with )?--out", "choose another --trial", text)
    if isinstance(error, DataError):
        text += f" (the dataset alone: {describe_dataset('cifar100').source})"
    return text


def _complain(prog: str, text: str, status: int) -> int:
    print(f"{prog}: error: {' '.join(text.split())}", file=sys.stderr)
    return status

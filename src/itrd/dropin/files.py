"""The files that the original scripts write: checkpoints, log.txt and TensorBoard scalars."""

from __future__ import annotations

import argparse
import inspect
import io
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itrd.engine import trainer as engine_trainer
from itrd.engine.trainer import Epoch, Trainer
from itrd.files import write_atomically


class OriginalFiles:
    """Writes an original script's files while a run goes on; :meth:`after_epoch` is the trainer's callback.

    Args:
        opt: the parsed options; they say where, how often, and go into the last checkpoint.
        model: name of the network that is trained; it starts the files' names.
        teacher: write as train_teacher.py does, with the optimiser's state.
        terms: TensorBoard name of a loss term -> (its name in the epoch's record, weight).
        text_log: write log.txt.
    """

    def __init__(
        self,
        opt: argparse.Namespace,
        model: str,
        *,
        teacher: bool = False,
        terms: Mapping[str, tuple[str, float]] | None = None,
        text_log: bool = False,
    ) -> None:
        self.folder = Path(opt.save_folder)
        self._opt = opt
        self._model = model
        self._teacher = teacher
        self._terms = terms or {}
        self._text_log = text_log
        self._writer: Any = None

    def after_epoch(self, trainer: Trainer, epoch: Epoch) -> None:
        """Write what belongs to a finished epoch."""
        self._write_scalars(trainer, epoch)
        if self._text_log:
            self._write_log(trainer)
        accuracy = torch.tensor(epoch.test["top1"])
        if trainer.best is epoch:
            print("saving the best model!")
            content = {"epoch": epoch.epoch, "model": _weights(trainer.task.student), "best_acc": accuracy}
            self._save(f"{self._model}_best.pth", content, trainer)
        if epoch.epoch % self._opt.save_freq == 0:
            print("==> Saving...")
            content = {"epoch": epoch.epoch, "model": _weights(trainer.task.student), "accuracy": accuracy}
            self._save(f"ckpt_epoch_{epoch.epoch}.pth", content, trainer)

    def finish(self, trainer: Trainer) -> None:
        """Write what belongs to a finished run."""
        if self._text_log:
            self._write_log(trainer, finished=True)
        content = {"opt": self._opt, "model": _weights(trainer.task.student)}
        self._save(f"{self._model}_last.pth", content, trainer)
        self.close()

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()

    def copy_sources(self, method: type) -> None:
        """Copy the script, the method and the training loop into the folder, for the record."""
        sources = [sys.argv[0], inspect.getsourcefile(method), inspect.getsourcefile(engine_trainer)]
        for source in sources:
            if source and source.endswith(".py") and Path(source).is_file():
                shutil.copy(source, self.folder)

    def _write_scalars(self, trainer: Trainer, epoch: Epoch) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier process wrote of this epoch and later ones is void, the first stage's scalars at
            # these steps included: they are written again.
            self._writer = SummaryWriter(self._opt.tb_folder, purge_step=epoch.epoch)
            for first in trainer.first_stages:
                if first.epoch >= epoch.epoch:
                    self._writer.add_scalar("init_train_loss", first.train["loss"], first.epoch)
        scalars = {
            "train_acc": epoch.train["top1"],
            "train_loss": epoch.train["loss"],
            "test_acc": epoch.test["top1"],
            "test_loss": epoch.test["loss"],
            "test_acc_top5": epoch.test["top5"],
        }
        scalars |= {name: weight * epoch.train[term] for name, (term, weight) in self._terms.items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, epoch.epoch)
        self._writer.flush()

    def _write_log(self, trainer: Trainer, *, finished: bool = False) -> None:
        # Written anew each time, so that it is right after a resume, too.
        lines = ["test_acc, test_loss, test_acc_top5"]
        for epoch in trainer.history:
            test = epoch.test
            lines.append(f"{_printed(test['top1'])}, {test['loss']}, {_printed(test['top5'])}")
        if finished and trainer.best is not None:
            lines.append(f"------best accuracy: {_printed(trainer.best.test['top1'])}")
        write_atomically(self.folder / "log.txt", ("\n".join(lines) + "\n").encode())

    def _save(self, name: str, content: dict[str, Any], trainer: Trainer) -> None:
        if self._teacher and trainer.optimizer is not None:
            content["optimizer"] = _on_cpu(trainer.optimizer.state_dict())
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(self.folder / name, buffer.getvalue())


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(entry) for key, entry in value.items()}
    return [_on_cpu(entry) for entry in value] if isinstance(value, list) else value


def _printed(percent: float) -> str:
    return str(torch.tensor(percent))

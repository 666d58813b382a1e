"""Distillation as a LightningModule.

module = Distillation(student, teacher, "itrd")
lightning.Trainer(max_epochs=30).fit(module, train_loader, test_loader)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.engine.config import TrainConfig
from itrd.engine.metrics import accuracies
from itrd.errors import UserError
from itrd.extras import require
from itrd.integrations.distiller import Distiller
from itrd.methods.base import Method, at_least_float32
from itrd.methods.objective import Objective

if TYPE_CHECKING:
    from lightning import LightningModule
else:
    LightningModule = require("lightning", "lightning", "LightningModule").LightningModule


class Distillation(LightningModule):
    """Trains a student with the help of a frozen teacher; logs the loss, its terms and the accuracy.

    Batches are ``(images, labels)`` or ``(images, labels, indices)``; override :meth:`unpack` for others. Logged,
    as means over an epoch: ``train/loss``, ``train/<term>`` (unweighted), ``train/top1``, ``val/loss``
    (cross-entropy) and ``val/top1``, and ``test/...`` likewise; accuracies in percent.

    The method's own modules are built in ``setup`` before the optimiser, from ``example`` or, without one, from the
    first training batch. They are trained beside the student, and saved in checkpoints; the teacher is not. With
    several processes each computes its loss on its own part of the batch.

    Args:
        student: the network to train.
        teacher: see :class:`itrd.integrations.distiller.Distiller`.
        method: likewise.
        example: a few training images (B, C, H, W); needed by ``load_from_checkpoint``, which sees no data.
        optimizer: makes from the parameters whatever ``configure_optimizers`` may return. The default is the
            published schedule stretched to the trainer's ``max_epochs``: SGD, momentum 0.9, weight decay 5e-4, rate
            0.05 (0.01 for MobileNetV2 and the ShuffleNets), a tenth after 5/8, 6/8 and 7/8 of the epochs.
        settings: what else :class:`itrd.integrations.distiller.Distiller` takes, ``train_labels`` for example.

    Attributes:
        distiller: computes the loss; None before it is built.
    """

    distiller: Distiller | None

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | str | os.PathLike[str] | None,
        method: str | Method | Objective = "itrd",
        *,
        example: Tensor | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._build = partial(Distiller, student, teacher, method, **settings)
        self._optimizer = optimizer
        self.distiller = None if example is None else self._build(example=example)

    @property
    def student(self) -> nn.Module:
        """The network that is trained."""
        return self._built.student

    @property
    def _built(self) -> Distiller:
        if self.distiller is None:
            raise UserError("the loss is not built yet; give Distillation(example=...) a few training images")
        return self.distiller

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take images (B, C, H, W), labels (B,) and, where there are any, indices (B,) out of a batch."""
        images, labels, *rest = batch
        return images, labels, rest[0] if rest else None

    def setup(self, stage: str) -> None:
        """Build the loss before the optimiser is made and before a checkpoint is read."""
        if self.distiller is None and stage == "fit":
            self.trainer.fit_loop.setup_data()  # makes the loader, which the trainer would do next
            with torch.random.fork_rng(devices=[]):  # the epochs draw what they would have drawn
                batch = next(iter(self.trainer.train_dataloader))  # type: ignore[arg-type]
            self.distiller = self._build(example=self.unpack(batch)[0])
        if self._built.objective.per_sample and self.trainer.world_size > 1:
            raise UserError(
                f"{self._built.objective.describe()} keeps a memory that every sample must reach, and several "
                "processes would each have their own; use devices=1"
            )

    def configure_optimizers(self) -> Any:
        """Make the optimiser of student and method."""
        trained = [p for p in self._built.parameters() if p.requires_grad]
        if self._optimizer is not None:
            return self._optimizer(trained)
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError(
                "the default schedule needs the trainer's max_epochs; set it, or give an optimizer"
            )
        schedule = TrainConfig(model=getattr(self.student, "arch", ""), epochs=epochs).resolved()
        assert schedule.learning_rate is not None
        assert schedule.milestones is not None
        sgd = torch.optim.SGD(
            trained, schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        steps = torch.optim.lr_scheduler.MultiStepLR(sgd, schedule.milestones, schedule.lr_decay)
        return {"optimizer": sgd, "lr_scheduler": steps}

    def forward(self, images: Tensor) -> Tensor:
        """Return the student's logits (B, K)."""
        return self._built.logits(images)

    def on_train_epoch_start(self) -> None:
        """Tell the loss which epoch begins."""
        epoch = self.current_epoch + 1
        epochs = self.trainer.max_epochs or -1
        self._built.start_epoch(epoch, epochs if epochs > 0 else epoch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a batch and log its parts."""
        images, labels, indices = self.unpack(batch)
        output = self._built(images, labels, indices)
        top1 = accuracies(at_least_float32(output.logits), labels)["top1"]
        self._log_means("train", {**output.terms, "top1": top1}, len(labels))
        return output.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the student on a batch of the validation set."""
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the student on a batch of the test set."""
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Any) -> None:
        images, labels, _ = self.unpack(batch)
        logits = at_least_float32(self(images))
        values = {"loss": F.cross_entropy(logits, labels), "top1": accuracies(logits, labels)["top1"]}
        self._log_means(split, values, len(labels))

    def _log_means(self, split: str, values: dict[str, Tensor], count: int) -> None:
        several = self.trainer.world_size > 1
        named = {f"{split}/{name}": value for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=count, sync_dist=several)

"""Distillation with ``transformers.Trainer``.

trainer = DistillTrainer(model=student, teacher=teacher, method="itrd", args=arguments, train_dataset=data)
trainer.train()
"""

from __future__ import annotations

import inspect
import os
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.engine.checkpoint import read_weights, save_weights
from itrd.engine.metrics import Meter
from itrd.errors import CheckpointError, UserError
from itrd.extras import require
from itrd.integrations.distiller import Distiller
from itrd.methods.base import Method, at_least_float32
from itrd.methods.objective import Objective
from itrd.models.observe import logits_of

transformers: Any = require("transformers", "transformers", "Trainer", "TrainerCallback")

OBJECTIVE = "distillation.safetensors"  # the method's own modules, beside the student in a checkpoint
_EXAMPLES = 4  # images that show the shapes


class DistillMixin:
    """Adds distillation to a ``Trainer``: ``class DistillTrainer(DistillMixin, Trainer)``.

    The Trainer's model is the student, so that what it saves and pushes is the student. Batches are dictionaries
    with ``pixel_values`` (B, C, H, W), ``labels`` (B,) and, for methods that keep something for every sample,
    ``indices`` (B,); these need ``remove_unused_columns=False``. Student and teacher are models of transformers
    or any module that returns logits. Where the student's ``forward`` has no ``pixel_values``, that setting is made
    here: all columns of the dataset then reach the data collator.

    The training loss is that of ``itrd distill``; its terms are logged beside it (``term/<name>``). The method's own
    modules are trained by the Trainer's optimiser, in a parameter group of their own, and kept in its checkpoints.
    The loss of an evaluation is the student's cross-entropy: the teacher is not run there.

    Args:
        teacher: see :class:`itrd.integrations.distiller.Distiller`.
        method: likewise.
        distillation: what else it takes, ``train_labels`` for example.
        arguments: everything that the Trainer takes.

    Attributes:
        distiller: computes the loss; None before :meth:`train`.

    Raises:
        UserError: several processes or GPUs are used, whose gradients the loss would bypass; the student is given as
            ``model_init``; or what the Trainer itself requires is not installed.
    """

    # What this class uses of the Trainer.
    model: nn.Module
    args: Any
    label_names: list[str]
    accelerator: Any
    optimizer: Any
    data_collator: Any
    train_dataset: Any
    model_init: Any
    distiller: Distiller | None

    def __init__(
        self,
        *positional: Any,
        teacher: nn.Module | str | os.PathLike[str] | None,
        method: str | Method | Objective = "itrd",
        distillation: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if find_spec("accelerate") is None:
            raise UserError("transformers.Trainer needs accelerate; install it with: pip install accelerate")
        super().__init__(*positional, **arguments)
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise UserError(
                "this Trainer distils in one process on one device; set CUDA_VISIBLE_DEVICES to one of them, or use "
                "itrd.integrations.lightning, which can use several"
            )
        if self.model_init is not None:
            raise UserError("the loss holds on to one student; give model instead of model_init")
        if "pixel_values" not in inspect.signature(self.model.forward).parameters:
            # A plain module's forward() tells the Trainer neither what to keep of a batch nor what labels are called.
            self.args.remove_unused_columns = False
            self.label_names = self.label_names or ["labels"]
        # The loss is a mean over the batch: the Trainer is to divide it by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self._teacher, self._method, self._distillation = teacher, method, distillation or {}
        self._terms = Meter()
        self.distiller = None
        self.add_callback(_Follow(self))  # type: ignore[attr-defined]

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **arguments: Any
    ) -> Any:
        """Build the loss, or read it from the checkpoint, and train."""
        self._build()
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            if folder is True:
                folder = transformers.trainer_utils.get_last_checkpoint(self.args.output_dir)
            if folder is not None:  # otherwise the Trainer says that there is none
                self._restore(Path(folder))
        return super().train(resume_from_checkpoint, *positional, **arguments)  # type: ignore[misc]

    def create_optimizer(self, *positional: Any) -> Any:
        """Make the Trainer's optimiser, with the method's own modules in a group of their own."""
        own = [p for p in self._build().objective.parameters() if p.requires_grad]
        if self.optimizer is not None and own:
            known = {p for group in self.optimizer.param_groups for p in group["params"]}
            if not known.issuperset(own):
                raise UserError(
                    f"{self._build().objective.describe()} has modules of its own to be trained, which the "
                    "given optimizer does not know; give optimizer_cls_and_kwargs or args.optim instead"
                )
            return self.optimizer
        optimizer = super().create_optimizer(*positional)  # type: ignore[misc]
        if own:
            optimizer.add_param_group({"params": own, "weight_decay": self.args.weight_decay})
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the distillation loss, in an evaluation the cross-entropy; with the logits if asked."""
        images, labels = inputs["pixel_values"], inputs["labels"]
        with self.accelerator.autocast():
            if model.training:
                output = self._build()(images, labels, inputs.get("indices"))
                self._terms.add(output.terms, len(labels))
                loss, logits = output.loss, output.logits
            else:
                logits = logits_of(model(images))
                loss = F.cross_entropy(at_least_float32(logits), labels)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def log(self, logs: dict[str, float], *positional: Any, **arguments: Any) -> None:
        """Log the means of the loss's terms beside the loss."""
        if "loss" in logs and self._terms.count:
            means = {f"term/{name}": mean for name, mean in self._terms.read().items() if name != "loss"}
            logs = {**logs, **means}
            self._terms.reset()
        super().log(logs, *positional, **arguments)  # type: ignore[misc]

    def _build(self) -> Distiller:
        if self.distiller is None:
            # Not through a loader, which would draw random numbers and start processes.
            examples = list(islice(iter(self.train_dataset), _EXAMPLES))
            images = self.data_collator(examples)["pixel_values"]
            self.distiller = Distiller(
                self.model, self._teacher, self._method, example=images, **self._distillation
            )
            self.distiller.to(self.args.device).train()
        return self.distiller

    def _restore(self, folder: Path) -> None:
        objective = self._build().objective
        if not objective.state_dict():
            return
        state, _ = read_weights(folder / OBJECTIVE)
        try:
            objective.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder / OBJECTIVE} is of another method: {reason}") from None


class _Follow(transformers.TrainerCallback):
    """Tells the loss which epoch begins, and writes the method's own modules into each checkpoint."""

    def __init__(self, trainer: DistillMixin) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start an epoch; ``state.epoch`` counts from 0 and has a fraction where an epoch is resumed."""
        self._trainer._build().start_epoch(int(state.epoch) + 1, state.num_train_epochs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write beside what the Trainer has just written."""
        objective = self._trainer._build().objective
        if objective.state_dict() and state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_weights(folder / OBJECTIVE, objective, {})


class DistillTrainer(DistillMixin, transformers.Trainer):
    """``transformers.Trainer`` that distils; see :class:`DistillMixin`."""

"""What one training step computes: networks, objective, and nothing of loops or files."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from itrd.engine.fold import fold_batch_norms
from itrd.methods.base import Batch, FirstStage, Method, Setup
from itrd.methods.objective import Objective
from itrd.models.base import FeatureNet, Outputs
from itrd.models.observe import Observer, logits_of, observer


class StepOutput(NamedTuple):
    """Loss with gradient, student logits, and detached scalars to log."""

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor]


class DistillTask(nn.Module):
    """A student, a frozen teacher (or none), and the objective between them.

    Args:
        student: the network to train.
        teacher: the network to learn from, or None for the student alone. It is put in eval mode, stays
            there, and never receives a gradient.
        objective: cross-entropy plus methods.
        track: ``reference`` or ``clean``, see :meth:`itrd.methods.objective.Objective.preact`.
        fold_teacher: run a copy of the teacher whose batch norms are folded into its convolutions; benchmark
            networks only. Its outputs differ from the teacher's by rounding.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        track: str = "reference",
        fold_teacher: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        # Kept out of the module tree: not trained, not moved into train mode, not part of checkpoints.
        self._teacher = [teacher.eval().requires_grad_(False)] if teacher is not None else []
        self._student_preact, self._teacher_preact = objective.preact(track)
        self._observe_student = observer(student) if objective.reads else None
        self._observe_teacher = observer(teacher) if teacher is not None else None
        self._fold_teacher = fold_teacher

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen network, if there is one."""
        return self._teacher[0] if self._teacher else None

    @property
    def observe_teacher(self) -> Observer | None:
        """Runs the teacher, if there is one."""
        return self._observe_teacher

    def setup(self, images: Tensor, num_classes: int, train_labels: Tensor) -> None:
        """Build the objective's trainable modules from the shapes that a few images give."""
        if self.teacher is None or not self.objective.reads:
            return
        training = self.student.training
        self.student.eval()
        with torch.no_grad():
            student, teacher = self._student_outputs(images), self._teacher_outputs(images)
        self.student.train(training)
        assert teacher is not None
        setup = Setup(student, teacher, self.student, self.teacher, num_classes, train_labels)
        self.objective.setup(setup)
        self.objective.to(images.device)
        if self._fold_teacher and isinstance(self.teacher, FeatureNet):
            self._observe_teacher = fold_batch_norms(self.teacher, images).observe

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Tell the objective, and the student's modules that follow a schedule, which epoch of the main stage begins.

        Args:
            epoch: counted from 1.
            epochs: of the whole stage.
        """
        self.objective.start_epoch(epoch)
        for module in self.student.modules():
            start = getattr(module, "start_epoch", None)
            if start is not None:
                start(epoch, epochs)

    def forward(self, images: Tensor, batch: Batch, teacher: Outputs | None = None) -> StepOutput:
        """Compute the loss of one batch of normalised images (B, C, H, W).

        ``teacher`` gives the teacher's outputs where they are known already; otherwise it is run.
        """
        if teacher is None:
            teacher = self._teacher_outputs(images)
        student = self._student_outputs(images)
        with record_function("itrd.objective"):
            loss, terms = self.objective(student, teacher, batch)
        return StepOutput(loss, student.logits.detach(), {"loss": loss.detach(), **terms})

    def first_stage_step(self, method: Method, images: Tensor, batch: Batch) -> StepOutput:
        """Compute the loss of one batch in a method's first stage: the sum of its terms."""
        teacher = self._teacher_outputs(images)
        student = self._student_outputs(images)
        assert teacher is not None
        terms = method(student, teacher, batch, first_stage=True)
        loss = torch.stack(list(terms.values())).sum()
        shown = {name: value.detach() for name, value in terms.items()}
        return StepOutput(loss, student.logits.detach(), {"loss": loss.detach(), **shown})

    def first_stage_mode(self, stage: FirstStage) -> list[nn.Parameter]:
        """Put everything in eval mode but the stage's modules; return the parameters that it trains."""
        self.eval()
        own = set(self.objective.modules())
        for module in stage.modules:
            module.train()
            if module in own:
                module.requires_grad_(True)  # outside this stage it is frozen, see Method.first_stage_only
        return [p for module in stage.modules for p in module.parameters() if p.requires_grad]

    def _student_outputs(self, images: Tensor) -> Outputs:
        with record_function("itrd.student"):
            if self._observe_student is None:
                return Outputs(logits_of(self.student(images)))
            return self._observe_student(images, self._student_preact)

    def _teacher_outputs(self, images: Tensor) -> Outputs | None:
        if self._observe_teacher is None or not self.objective.reads:
            return None
        with torch.no_grad(), record_function("itrd.teacher"):
            return self._observe_teacher(images, self._teacher_preact)

"""One loss for anyone's training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from itrd.engine.networks import given_network, load_network
from itrd.engine.task import DistillTask, StepOutput
from itrd.errors import UserError
from itrd.methods import create_objective
from itrd.methods.base import Batch, Method
from itrd.methods.objective import Objective
from itrd.models.observe import examined, logits_of

if TYPE_CHECKING:
    from typing_extensions import Self


IGNORED = -100  # the label that torch's cross-entropy leaves out


class Distiller(nn.Module):
    """A student, a frozen teacher and the loss between them, as a module to call in a loop of one's own.

        distiller = itrd.Distiller(student, teacher, "itrd", example=images[:4])
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05)  # the student's and the method's own
        for images, labels in loader:
            loss = distiller(images, labels).loss
            ...

    The loss is the one that ``itrd distill`` computes, with the same objects behind it. Call ``train()`` and
    ``eval()`` on it as on any module, and :meth:`start_epoch` before each epoch.

    The teacher is put into eval mode and asks for no gradient, for good. It follows ``distiller.to(...)``, and is
    no part of ``parameters()``, ``state_dict()`` or ``train()``.

    Args:
        student: the network to train, on the device where it is to be trained.
        teacher: a trained network; or a run folder, checkpoint or name as ``itrd distill --teacher`` takes it; None
            for cross-entropy alone. It gets the student's images as they are; wrap it in
            :class:`itrd.models.adapt.Adapted` if it expects others.
        method: a method, an objective, or the notation of :mod:`itrd.methods.expression`.
        example: a few training images (B, C, H, W), B at least 2, normalised. Both networks are run on them once, in
            eval mode, to build the method's own modules for the shapes they give.
        ce_weight: weight of the cross-entropy; None for the method's published one.
        track: ``reference`` or ``clean``, see :meth:`itrd.methods.objective.Objective.preact`.
        train_labels: (N,) int64 labels of the whole training set, in the order of the samples' indices; needed by
            methods that keep something for every sample (CRD, WCoRD).
        student_taps, teacher_taps: modules whose outputs are the feature maps, see
            :class:`itrd.engine.task.DistillTask`.

    Attributes:
        task: computes the loss; see :class:`itrd.engine.task.DistillTask`.

    Raises:
        UserError: the networks, the method and what is given do not fit together, or the method begins with a
            stage of its own, which a single loss cannot express.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | str | os.PathLike[str] | None,
        method: str | Method | Objective = "itrd",
        *,
        example: Tensor,
        ce_weight: float | None = None,
        track: str = "reference",
        train_labels: Tensor | None = None,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        objective = create_objective(method, ce_weight)
        given_network("student", student, names=False)
        teacher = None if teacher is None else given_network("teacher", teacher)
        if teacher is None and objective.reads:
            raise UserError(f"{objective.describe()} needs a teacher; give one, or use method='none'")
        if objective.per_sample and train_labels is None:
            raise UserError(
                f"{objective.describe()} keeps something for every training sample; give train_labels, the labels of "
                "the whole training set, and call the loss with the samples' indices"
            )
        device = next(student.parameters(), example).device
        example = example.to(device)
        if isinstance(teacher, str):
            teacher = load_network(teacher).net
        self.task = DistillTask(
            student,
            None if teacher is None else teacher.to(device),
            objective,
            track,
            student_taps=student_taps,
            teacher_taps=teacher_taps,
        )
        labels = torch.empty(0, dtype=torch.int64) if train_labels is None else train_labels
        self._num_classes = self._count_classes(example)
        self.task.setup(example, self._num_classes, labels.to(device))
        for first, _ in objective.first_stages():
            raise UserError(
                f"method {first.name!r} trains parts of the networks in a stage of its own before the student's "
                "training, which a loss inside another loop cannot do; use itrd.distill or `itrd distill`"
            )

    @property
    def student(self) -> nn.Module:
        """The network that is trained."""
        return self.task.student

    @property
    def objective(self) -> Objective:
        """The loss, with the method's own modules and memories."""
        return self.task.objective

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Tell methods that warm up, and students that follow a schedule, which epoch begins.

        Args:
            epoch: counted from 1.
            epochs: of the whole training.
        """
        self.task.start_epoch(epoch, epochs)

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> StepOutput:
        """Compute the loss of a batch.

        Args:
            images: (B, C, H, W), normalised as both networks expect.
            labels: (B,) int64, from 0 to K - 1. Where no method looks at them also probabilities (B, K), and -100 for
                images that the cross-entropy is to leave out. Their range is checked on a CPU alone, because a GPU
                would have to be waited for.
            indices: (B,) int64 positions of the samples in the training set; for methods that keep something
                for every sample.

        Returns:
            ``loss`` (scalar, with gradient), ``logits`` of the student (B, K) and ``terms``, the unweighted parts of
            the loss by name, both detached.

        Raises:
            UserError: the method needs indices, or the labels are of another form.
        """
        if self.objective.labelled:
            self._check_labels(labels, len(images))
        if indices is None:
            if self.objective.per_sample:
                raise UserError(
                    f"{self.objective.describe()} keeps something for every training sample: its batches must bring "
                    "the samples' indices, their positions in the training set"
                )
            indices = torch.arange(
                len(labels), device=labels.device
            )  # no method of this objective looks at them
        return self.task(images, Batch(labels, indices))

    def logits(self, images: Tensor) -> Tensor:
        """Return the student's logits (B, K), in the mode it is in."""
        return logits_of(self.student(images))

    def _check_labels(self, labels: Tensor, count: int) -> None:
        if labels.is_floating_point() and not self._needs_classes:
            if labels.shape != (count, self._num_classes):
                raise UserError(
                    f"labels that are probabilities must have the shape ({count}, {self._num_classes}), not "
                    f"{tuple(labels.shape)}"
                )
            return
        expected = f"labels must be the numbers of the classes, int64 of shape ({count},)"
        if labels.shape != (count,) or labels.dtype not in (torch.int64, torch.uint8):
            why = "; convert them with .long()"
            if labels.ndim > 1:
                why = f"; {self.objective.describe()} needs one class an image" if self._needs_classes else ""
            raise UserError(f"{expected}, not {labels.dtype} of shape {tuple(labels.shape)}{why}")
        if labels.device.type == "cpu" and count and not torch.compiler.is_compiling():
            # Cross-entropy leaves out what has this label; a method that looks at the labels would not.
            known = labels if self._needs_classes else labels[labels != IGNORED]
            wrong = known[(known < 0) | (known >= self._num_classes)]
            if len(wrong):
                raise UserError(
                    f"{expected} from 0 to {self._num_classes - 1}, and there is a label {wrong[0]}"
                )

    @property
    def _needs_classes(self) -> bool:
        return self.objective.per_sample or self.objective.needs_labels

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.task.teacher is not None:  # outside of the module tree, and yet to follow .to(device)
            self.task.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _count_classes(self, example: Tensor) -> int:
        with examined("student", self.student, example):
            return self.logits(example).shape[1]

"""What one training step computes: networks, objective, and nothing of loops or files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from itrd.engine.compiled import Compiled
from itrd.engine.fold import fold_batch_norms
from itrd.errors import UserError
from itrd.methods.base import Batch, FirstStage, Method, Setup
from itrd.methods.objective import Objective
from itrd.models.base import FeatureNet, Outputs
from itrd.models.observe import Observer, examined, failing, has_own_features, logits_of, observer, plain
from itrd.models.taps import MatchedTaps, match_taps


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
        student_taps, teacher_taps: modules whose outputs are the feature maps, see
            :func:`itrd.models.taps.match_taps`; None for a network's own maps, or an automatic choice.

    Attributes:
        taps: which map of the student belongs to which of the teacher, known after :meth:`setup`; None where no
            method reads maps, and where both networks offer their own, which the methods pair as published.

    Raises:
        UserError: teacher and student share parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        track: str = "reference",
        fold_teacher: bool = False,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if teacher is not None:
            _check_separate(student, teacher)
        self.student = student
        self.objective = objective
        # Kept out of the module tree: not trained, not moved into train mode, not part of checkpoints.
        self._teacher = [teacher.eval().requires_grad_(False)] if teacher is not None else []
        self._compiled_teacher: Compiled[[Tensor, bool], Outputs] | None = None
        self._compiled_objective: (
            Compiled[[Outputs, Outputs | None, Batch], tuple[Tensor, dict[str, Tensor]]] | None
        ) = None
        # By stage: a first one, the main one.
        self._preact = {first: objective.preact(track, first_stage=first) for first in (True, False)}
        self._observe_student = observer(student) if objective.reads else self._logits_alone
        self._observe_teacher = observer(teacher) if teacher is not None else None
        self._fold_teacher = fold_teacher
        self._given_taps = student_taps, teacher_taps
        self.taps: MatchedTaps | None = None
        self._ran: set[tuple[int, bool]] = (
            set()
        )  # sizes of batches that the student got through, and in train mode

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen network, if there is one."""
        return self._teacher[0] if self._teacher else None

    @property
    def observe_teacher(self) -> Observer | None:
        """Runs the teacher as it is, compiled or not, if there is one: what others look up must not depend on that."""
        return self._observe_teacher

    def setup(self, images: Tensor, num_classes: int, train_labels: Tensor) -> None:
        """Build the objective's trainable modules from the shapes that a few images give.

        Raises:
            UserError: a network does not take the images, does not give what a method reads, the student is frozen, has
                too few classes or, for a method that compares logits, others than the teacher, or the teacher's outputs
                are not finite.
        """
        _check_trainable(self.student)
        # Also one that is not set up, because the teacher's logits are given.
        self.objective.to(images.device)
        with examined("student", self.student, images):
            logits = logits_of(self.student(images))
        _check_classes(self.student, logits, num_classes)
        if self.teacher is None:
            self._check_compared(logits, num_classes)  # the teacher's logits that a file gives
        if self.teacher is None or not self.objective.reads:
            return
        self.taps = self._match_taps(images)
        if self.taps is not None:
            self._observe_student, self._observe_teacher = (
                self.taps.student.observe,
                self.taps.teacher.observe,
            )
        with examined("student", self.student, images):
            student = self._student_outputs(images)
        with examined("teacher", self.teacher, images):
            teacher = self._teacher_outputs(images)
        assert teacher is not None
        self._check_compared(student.logits, teacher.logits.shape[-1])
        _check_finite(self.teacher, teacher)
        net = plain(self.teacher)
        self.objective.setup(Setup(student, teacher, self.student, net, num_classes, train_labels))
        self.objective.to(images.device)
        if student.logits.dtype == torch.float64:  # and so are the inputs of the methods' modules
            self.objective.double()
        if self._fold_teacher and isinstance(self.teacher, FeatureNet) and self.taps is None:
            self._observe_teacher = fold_batch_norms(self.teacher, images).observe

    def _check_compared(self, logits: Tensor, teachers: int) -> None:
        """Refuse a student of other classes than the teacher's, where a method compares their logits."""
        if "logits" in self.objective.reads and logits.shape[1] != teachers:
            raise UserError(
                f"{self.objective.describe()} compares logits class by class, but the student "
                f"{type(plain(self.student)).__name__} has {logits.shape[1]} and the teacher {teachers}; give the "
                "student a classifier of the teacher's size, or choose a method that reads no logits (itrd, crd, rkd, "
                "pkt, similarity, hint)"
            )

    def _match_taps(self, images: Tensor) -> MatchedTaps | None:
        assert self.teacher is not None
        given = any(taps is not None for taps in self._given_taps)
        own = has_own_features(plain(self.student)) and has_own_features(plain(self.teacher))
        if not given and (own or "maps" not in self.objective.reads):
            return None
        return match_taps(self.student, self.teacher, images, *self._given_taps)

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
        return self.loss(*self.observe(images, teacher), batch)

    def observe(
        self, images: Tensor, teacher: Outputs | None = None, *, first_stage: bool = False
    ) -> tuple[Outputs, Outputs | None]:
        """Run the student on images (B, C, H, W), and the teacher unless its outputs are given or not needed."""
        if teacher is None:
            teacher = self._teacher_outputs(images, first_stage)
        return self._student_outputs(images, first_stage), teacher

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> StepOutput:
        """Compute the loss from the networks' outputs."""
        with record_function("itrd.objective"):
            loss, terms = (self._compiled_objective or self.objective)(student, teacher, batch)
        return StepOutput(loss, student.logits.detach(), {"loss": loss.detach(), **terms})

    def first_stage_loss(
        self, method: Method, student: Outputs, teacher: Outputs | None, batch: Batch
    ) -> StepOutput:
        """Compute the loss in a method's first stage: the sum of its terms."""
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

    def compile_all(self) -> None:
        """Compile what runs student and teacher, and the loss; call after :meth:`setup`."""
        self._compiled_objective = Compiled(self.objective, "loss")
        self._observe_student = Compiled(self._observe_student, "student")
        if self._observe_teacher is not None:
            self._compiled_teacher = Compiled(self._observe_teacher, "teacher")

    def _logits_alone(self, images: Tensor, preact: bool) -> Outputs:
        return Outputs(logits_of(self.student(images)))

    def _student_outputs(self, images: Tensor, first_stage: bool = False) -> Outputs:
        preact, _ = self._preact[first_stage]
        with record_function("itrd.student"):
            kind = (len(images), self.student.training)
            if kind in self._ran:
                return self._observe_student(images, preact)
            # It was looked at in eval mode alone: another look in train mode would move its statistics.
            shape, mode = "x".join(map(str, images.shape)), "train" if self.student.training else "eval"
            advice = "it must give logits in train mode as in eval mode: mend that, or give larger images or batches"
            with failing("student", self.student, f"fails in {mode} mode on a batch of {shape}", advice):
                outputs = self._observe_student(images, preact)
            self._ran.add(kind)
            return outputs

    def _teacher_outputs(self, images: Tensor, first_stage: bool = False) -> Outputs | None:
        if self._observe_teacher is None or not self.objective.reads:
            return None
        _, preact = self._preact[first_stage]
        with torch.no_grad(), record_function("itrd.teacher"):
            return (self._compiled_teacher or self._observe_teacher)(images, preact)


def _check_separate(student: nn.Module, teacher: nn.Module) -> None:
    theirs = {id(parameter) for parameter in teacher.parameters()}
    shared = [name for name, parameter in student.named_parameters() if id(parameter) in theirs]
    if shared:
        raise UserError(
            f"teacher and student are the same module or share parameters ({shared[0]}), and the teacher's are "
            "frozen; give the student parameters of its own, for example by copy.deepcopy"
        )


def _check_trainable(student: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise UserError(
            f"no parameter of the student {type(plain(student)).__name__} asks for a gradient, so there is nothing to "
            "train; call requires_grad_() on it, or on the part that is to be trained"
        )


def _check_classes(student: nn.Module, logits: Tensor, num_classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] < num_classes:
        raise UserError(
            f"the student {type(plain(student)).__name__} gives logits of shape {tuple(logits.shape)} for a batch, and "
            f"the dataset has {num_classes} classes; give it a classifier for these"
        )


def _check_finite(net: nn.Module, seen: Outputs) -> None:
    maps = {f"map {i}": value for i, value in enumerate(seen.maps, 1)}
    given = {"logits": seen.logits, "embedding": seen.embedding, **maps, "stem": seen.stem}
    broken = [name for name, value in given.items() if value is not None and not bool(value.isfinite().all())]
    if broken:
        raise UserError(
            f"the teacher {type(plain(net)).__name__} gives numbers that are not finite on the first training images "
            f"({', '.join(broken)}); its weights are damaged, or its images are of another kind: use another one"
        )

"""What every distillation method is: a module that turns two networks' outputs into named terms.

A method knows tensors only: no loop, no file, no flag. To write one, subclass :class:`Method`, give it
its name, its paper and what it reads, and implement :meth:`Method.terms`. Everything else has a default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.models.base import Outputs

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Batch:
    """What a method may know of a batch beside the networks' outputs.

    Attributes:
        labels: (B,) int64 class labels.
        indices: (B,) int64 positions of the samples in the training set.
    """

    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Setup:
    """What a method may know before training: example outputs (for their shapes), networks, labels.

    Attributes:
        student: the student's outputs on a small batch, without gradient.
        teacher: the teacher's outputs on the same batch.
        student_net: the student.
        teacher_net: the teacher.
        num_classes: K.
        train_labels: (N,) int64 labels of the whole training set.
    """

    student: Outputs
    teacher: Outputs
    student_net: nn.Module
    teacher_net: nn.Module
    num_classes: int
    train_labels: Tensor


@dataclass(frozen=True)
class FirstStage:
    """A stage before the student's own training, with its own optimiser that is dropped afterwards.

    Attributes:
        modules: what it trains: put in train mode and optimised; everything else stays in eval mode.
        epochs: passes over the training set, at a constant learning rate.
        learning_rate: None for the initial rate of the run.
    """

    modules: tuple[nn.Module, ...]
    epochs: int = 30
    learning_rate: float | None = None


class Method(nn.Module):
    """A distillation method: one or more scalar terms of the student's loss.

    Class attributes:
        name: name on the command line and in :func:`itrd.list_methods`.
        title: the field's usual name.
        paper: authors, venue, year, arXiv number.
        formula: the objective in one line, with the symbols that the code uses.
        reads: which of ``logits``, ``embedding``, ``maps``, ``stem`` it reads, of both networks.
        weight: published weight of the method's loss beside cross-entropy.
        weight_in_sum: its weight inside a sum of methods, where that differs.
        ce_weight: published weight of the cross-entropy beside it.
        student_preact, teacher_preact: whether the published code calls the network with ``preact=True``,
            which gives maps before their activation.
        main_stage: whether it has terms in the student's own training; without, it acts in its first stage alone.
        relates_samples: whether its loss is more than a mean over samples of something that each has by itself. Where
            a batch is divided among processes, such a method gets the outputs of all of them.
        per_sample: whether it keeps something for every training sample, and so reads ``Batch.indices`` and
            ``Setup.train_labels``.
        needs_labels: whether it reads labels, so that images without any are not enough.
        waits: whether its terms make the host wait for a GPU, so that a step cannot be recorded.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]
    reads: frozenset[str] = frozenset()  # an instance may narrow it
    weight: ClassVar[float] = 1.0
    weight_in_sum: ClassVar[float | None] = None
    ce_weight: ClassVar[float] = 1.0

    student_preact: ClassVar[bool] = False
    teacher_preact: ClassVar[bool] = False
    main_stage: ClassVar[bool] = True
    relates_samples: bool = True  # the safe answer; an instance may narrow it
    per_sample: bool = False
    needs_labels: bool = False
    waits: bool = False

    _checked: frozenset[bool] = (
        frozenset()
    )  # whose terms were looked at: the first stage's, those of the main one

    def setup(self, setup: Setup) -> None:
        """Build the method's own trainable modules, once, before training. Default: none."""

    def first_stage(self) -> FirstStage | None:
        """Describe the stage before the student's training, after :meth:`setup`. Default: there is none."""
        return None

    def first_stage_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute the terms of the first stage, whose sum is its loss; called like :meth:`terms`."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch of the main stage, counted from 1 (for warm-ups). Default: nothing."""

    def connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Apply trainable connectors that may run in reduced precision. Default: return the inputs.

        Called before :meth:`terms`, under the run's automatic casting.
        """
        return student, teacher

    def first_stage_connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Do in the first stage what :meth:`connect` does in the main stage. Default: return the inputs."""
        return student, teacher

    def first_stage_only(self) -> tuple[nn.Module, ...]:
        """Return the method's own modules that nothing but its first stage trains. Default: none.

        Outside that stage they stay in eval mode and ask for no gradient, see :meth:`train`, so that no
        other optimiser takes them. ``DistillTask.first_stage_mode`` lifts both.
        """
        return ()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but :meth:`first_stage_only`, which stay frozen in eval mode."""
        super().train(mode)
        for module in self.first_stage_only():
            module.eval().requires_grad_(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert the method's own modules, but to no less than float32: their inputs are promoted to that."""

        def kept(x: Tensor) -> Tensor:
            converted = fn(x)
            return x.to(converted.device) if converted.dtype in _HALF and x.dtype not in _HALF else converted

        return super()._apply(kept, recurse)

    def term_weights(self) -> Mapping[str, float]:
        """Weight of each term inside the method's loss; a term that is not named has weight 1."""
        return {}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute the unweighted scalar terms of one batch; none where the method only has a first stage.

        Called with automatic casting off and with floating-point inputs of at least single precision.
        """
        raise NotImplementedError

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, *, first_stage: bool = False
    ) -> dict[str, Tensor]:
        """Check, connect, promote to at least float32, and compute :meth:`terms` (or those of the first stage).

        The teacher's outputs are detached first: nothing that a method does can reach the teacher, while a
        trainable head on the teacher's side still gets its gradient.

        Raises:
            UserError: an output that the method reads is missing, or its first terms are nothing to be trained with.
        """
        self.check_provided(student, teacher)
        # Promoting maps that nobody reads would cost more than most losses.
        student, teacher = student.only(self.reads), teacher.only(self.reads).map(torch.Tensor.detach)
        device = student.logits.device.type
        if not torch.is_autocast_enabled(device):  # then nothing else brings the inputs to the weights' type
            student, teacher = student.map(at_least_float32), teacher.map(at_least_float32)
            if teacher.logits.dtype != student.logits.dtype:  # networks of different types
                teacher = teacher.map(lambda x: x.to(student.logits.dtype))
        connect = self.first_stage_connect if first_stage else self.connect
        terms = self.first_stage_terms if first_stage else self.terms
        student, teacher = connect(student, teacher)
        with torch.autocast(device, enabled=False):
            found = terms(student.map(at_least_float32), teacher.map(at_least_float32), batch)
        if first_stage not in self._checked:
            self._check_terms(first_stage, found, student)
        return found

    def _check_terms(self, first_stage: bool, terms: Any, student: Outputs) -> None:
        """Refuse first terms of a form that the loss cannot use, or that train nothing; on the host alone."""
        function = "first_stage_terms" if first_stage else "terms"
        where = f"method {self.name!r}: {function}() must return a dict of scalar tensors"
        if not isinstance(terms, Mapping):
            raise UserError(f"{where}, such as {{{self.name!r}: loss}}, not {type(terms).__name__}")
        for key, value in terms.items():
            if not isinstance(value, Tensor) or value.ndim:
                shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
                raise UserError(
                    f"{where}, and {key!r} is {type(value).__name__}{shape}; give its mean or sum"
                )
        has_stage = type(self).first_stage is not Method.first_stage
        if not terms and self.reads and not (has_stage and not first_stage):
            raise UserError(f"{where}, and it is empty; give at least one, in every step")
        read = (student.embedding, *student.maps, student.stem, *[student.logits] * ("logits" in self.reads))
        if terms and torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in read):
            if not any(value.requires_grad for value in terms.values()):
                raise UserError(
                    f"method {self.name!r}: no gradient reaches the student from what {function}() returns; compute it "
                    "from the student's outputs without detach(), item() or no_grad()"
                )
            self._checked |= {first_stage}

    def check_provided(self, student: Outputs, teacher: Outputs) -> None:
        """Refuse outputs that lack what the method reads.

        Raises:
            UserError: names what is missing, and the network.
        """
        for side, outputs in (("student", student), ("teacher", teacher)):
            for what in sorted(self.reads):
                if getattr(outputs, what) is None or (what == "maps" and not outputs.maps):
                    raise UserError(
                        f"method {self.name!r} reads {what}, and the {side} does not provide them: "
                        + _MISSING[what].format(side=side)
                    )

    def loss(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the terms."""
        weights = self.term_weights()
        weighted = [weights.get(key, 1.0) * value for key, value in terms.items()]
        return torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """Keyword arguments of the constructor and their defaults."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_HALF = (torch.float16, torch.bfloat16)
_MISSING = {
    "logits": "it must return them",
    "embedding": "it has no linear layer whose input it would be; name a module with --{side}_taps embedding=PATH",
    "maps": "no module gives one, or it was not looked for; name modules with --{side}_taps",
    "stem": "only the networks of `itrd models` do; choose one of these, or a method that reads maps",
}


def at_least_float32(x: Tensor) -> Tensor:
    """Promote half precision to float32; leave float32 and float64 alone."""
    return x.float() if x.dtype in _HALF else x

"""The student's loss: cross-entropy plus a weighted sum of methods."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods import create_method
from itrd.methods.base import Batch, FirstStage, Method, Setup, at_least_float32
from itrd.methods.expression import CROSS_ENTROPY, parse
from itrd.models.base import Outputs


class Objective(nn.Module):
    """L = ce_weight CE(z_s, y) + sum_m w_m L_m.

    Rules where a weight is left out: a single method brings its published weight and its published weight of
    the cross-entropy; in a sum, each method brings its weight in sums (KD: 1, as in the published CRD+KD) and
    the cross-entropy has weight 1.

    Args:
        methods: the methods, each with its weight.
        ce_weight: weight of the cross-entropy.

    Raises:
        UserError: something is no method, or does not say its name or what it reads, or a weight is no finite number,
            or negative.

    Attributes:
        label_smoothing: part of a label's probability that the cross-entropy spreads evenly over all classes.
        labelled: whether the training images have labels; without, there is no cross-entropy.
    """

    def __init__(self, methods: Sequence[tuple[float, Method]], ce_weight: float = 1.0) -> None:
        super().__init__()
        for _, method in methods:
            _check_declared(method)
        self.ce_weight = _number(ce_weight, "the weight of the cross-entropy")
        self.label_smoothing = 0.0
        self.labelled = True
        self.weights = [_number(weight, f"the weight of {method.name}") for weight, method in methods]
        self.methods = nn.ModuleList([method for _, method in methods])

    @classmethod
    def create(cls, method: str | Method | Objective, ce_weight: float | None = None) -> Objective:
        """Build an objective from the notation of :mod:`itrd.methods.expression` or from a method.

        Raises:
            UserError: it is of another type, the text is not understood, or a method refuses a setting.
            UnknownNameError: no such method.
        """
        if isinstance(method, Objective):
            if ce_weight is None:
                return method
            changed = cls(list(zip(method.weights, method._methods(), strict=True)), ce_weight)
            changed.label_smoothing = method.label_smoothing
            return changed
        if isinstance(method, Method):
            return cls([(method.weight, method)], method.ce_weight if ce_weight is None else ce_weight)
        if not isinstance(method, str):
            is_class = isinstance(method, type)
            what = f"the class {method.__name__}" if is_class else f"{type(method).__name__} {method!r}"
            advice = f"; make one with {method.__name__}()" if is_class else ""
            raise UserError(
                "the method must be text such as 'kd + 0.8*crd', a Method such as KD(), or an Objective, which sums "
                f"several, not {what}{advice}"
            )
        terms = parse(method)
        cross_entropy = [t for t in terms if t.name == CROSS_ENTROPY]
        made = [(t.weight, create_method(t.name, **t.settings)) for t in terms if t.name != CROSS_ENTROPY]
        if cross_entropy:
            if ce_weight is not None:
                raise UserError("the cross-entropy has two weights: one in the method, one as ce_weight")
            written = cross_entropy[0].weight
            ce_weight = 1.0 if written is None else written
        if len(made) == 1:
            weight, only = made[0]
            default_ce = only.ce_weight
            methods = [(only.weight if weight is None else weight, only)]
        else:
            default_ce = 1.0
            methods = [(_weight_in_sum(m) if weight is None else weight, m) for weight, m in made]
        return cls(methods, default_ce if ce_weight is None else ce_weight)

    @property
    def reads(self) -> frozenset[str]:
        """What the methods read of the teacher; empty: no teacher is needed."""
        return frozenset().union(*(m.reads for m in self._methods()))

    @property
    def relates_samples(self) -> bool:
        """Whether a method needs the outputs of the whole batch at once."""
        return any(m.relates_samples for m in self._methods())

    @property
    def per_sample(self) -> bool:
        """Whether a method needs the samples' indices and the labels of the whole training set."""
        return any(m.per_sample for m in self._methods())

    @property
    def needs_labels(self) -> bool:
        """Whether a method looks at the labels; the cross-entropy is no method."""
        return any(m.needs_labels for m in self._methods())

    def expect_labels(self, there: bool, of: str) -> None:
        """Say whether the training images have labels.

        Args:
            there: whether they have.
            of: what an error calls them.

        Raises:
            UserError: they have none, and something needs them.
        """
        self.labelled = there
        needing = [f"the cross-entropy (weight {_shortest(self.ce_weight)})"] * (self.ce_weight != 0)
        needing += [method.name for method in self._methods() if method.needs_labels]
        if needing and not there:
            raise UserError(
                f"the training images of {of} have no labels, and {' and '.join(needing)} cannot do without; choose a "
                "method that can, with --ce_weight 0 (kd, itrd, rkd, similarity, ...), or give labelled images"
            )

    def preact(self, track: str, *, first_stage: bool = False) -> tuple[bool, bool]:
        """Whether student and teacher are to be called with ``preact=True``.

        Methods that read maps decide: before or after the activation, as each was published. Where none does, the
        reference track makes the call that the published code makes, for its side effect on wide ResNets' batch
        norms; the clean track does not. Nor does it in the main stage of a method that reads maps in its first stage
        alone (AB).

        Args:
            track: ``reference`` or ``clean``.
            first_stage: of a method's first stage, instead of the main one.

        Raises:
            UserError: one method reads maps before the activation and another after it.
        """
        readers = [m for m in self._methods() if "maps" in m.reads]
        for side in ("student_preact", "teacher_preact"):
            before = [m.name for m in readers if getattr(m, side)]
            after = [m.name for m in readers if not getattr(m, side)]
            if before and after:
                raise UserError(
                    f"{before[0]} reads the {side[:7]}'s maps before their activation and {after[0]} after it, so they "
                    "cannot be summed; leave one of them out"
                )
        if track != "reference" and not first_stage:
            readers = [m for m in readers if m.main_stage]
        asking = readers or [m for m in self._methods() if track == "reference"]
        return any(m.student_preact for m in asking), any(m.teacher_preact for m in asking)

    def setup(self, setup: Setup) -> None:
        """Build the trainable modules of all methods.

        Raises:
            UserError: the networks lack what a method reads, or do not fit it.
        """
        for method in self._methods():
            method.check_provided(setup.student, setup.teacher)
            method.setup(setup)

    def start_epoch(self, epoch: int) -> None:
        """Tell all methods which epoch of the main stage begins, counted from 1."""
        for method in self._methods():
            method.start_epoch(epoch)

    def first_stages(self) -> list[tuple[Method, FirstStage]]:
        """Methods that want a stage of their own before the student's training, in order."""
        stages = [(method, method.first_stage()) for method in self._methods()]
        return [(method, stage) for method, stage in stages if stage is not None]

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and its unweighted terms.

        Args:
            student: its outputs on the batch: logits (B, K), and what the methods read, such as embedding (B, D_s)
                and maps (B, C_i, H_i, W_i).
            teacher: the same of the teacher, of the same images in the same order; it may have other widths and
                sizes. None where no method reads anything.
            batch: labels and indices of the samples, (B,) int64 each.

        Returns:
            The scalar loss, and ``{"ce": ..., "<method>[.<term>]": ...}`` detached, unweighted.

        Raises:
            UserError: an output that a method reads is missing, the method was not set up, or its first terms are
                nothing to be trained with.
        """
        shown = {}
        if self.labelled:
            ce = F.cross_entropy(
                at_least_float32(student.logits), batch.labels, label_smoothing=self.label_smoothing
            )
            total = self.ce_weight * ce
            shown[CROSS_ENTROPY] = ce.detach()
        else:
            total = torch.zeros((), device=student.logits.device)
        for weight, method in zip(self.weights, self._methods(), strict=True):
            if not method.reads:
                continue
            assert teacher is not None
            terms = method(student, teacher, batch)
            if terms:  # a method that acts in its first stage alone has none here
                total = total + weight * method.loss(terms)
            for key, value in terms.items():
                shown[method.name if key == method.name else f"{method.name}.{key}"] = value.detach()
        return total, shown

    def describe(self) -> str:
        """Write the loss out in the notation of :mod:`itrd.methods.expression`.

        :func:`itrd.methods.create_objective` reads it again if all methods are the library's.
        """
        parts = [f"{_shortest(self.ce_weight)}*ce"]
        for weight, method in zip(self.weights, self._methods(), strict=True):
            if method.reads:
                settings = ", ".join(
                    f"{k}={getattr(method, k)!r}" for k in method.settings() if hasattr(method, k)
                )
                parts.append(f"{_shortest(weight)}*{method.name}" + (f"({settings})" if settings else ""))
        return " + ".join(parts)

    def _methods(self) -> list[Method]:
        return [m for m in self.methods if isinstance(m, Method)]


def _check_declared(method: Method) -> None:
    what = getattr(method, "__name__", type(method).__name__)
    if not isinstance(method, Method):
        raise UserError(f"an objective sums pairs (weight, Method), and {what} is no Method object")
    if not hasattr(method, "name"):
        raise UserError(f"method {what} has no name; write name = {what.lower()!r} into its class")
    wrong = isinstance(method.reads, str) or not set(method.reads) <= set(Outputs._fields)
    if wrong or not (method.reads or method.name == "none"):  # one that reads nothing is never called
        raise UserError(
            f"method {method.name!r} has reads = {method.reads!r}; it must be a set of "
            f"{', '.join(map(repr, Outputs._fields))}, as in frozenset({{'logits'}})"
        )


def _number(weight: Any, what: str) -> float:
    """Return a weight as Python's own number, which is written without the name of a type."""
    if isinstance(weight, Tensor) and weight.numel() == 1:
        weight = weight.item()
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise UserError(f"{what} must be a number, not {type(weight).__name__} {weight!r}")
    try:
        number = float(weight)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not 0 <= number < math.inf:
        raise UserError(f"{what} must be a finite number that is not negative, got {number}")
    return number


def _shortest(weight: float) -> str:
    """All digits of a weight, without ``.0``: 0.8, 1, 30000."""
    return repr(int(weight)) if weight == int(weight) else repr(weight)


def _weight_in_sum(method: Method) -> float:
    return method.weight if method.weight_in_sum is None else method.weight_in_sum

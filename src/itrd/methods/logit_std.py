"""Logit standardisation: any method on logits, after each sample's logits have mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.methods.functional import rounding_noise, tame
from itrd.models.base import Outputs


class LogitStandardization(Method):
    """Logit Standardization in Knowledge Distillation (Sun, Ren, Li, Wang, Cao, CVPR 2024, arXiv 2403.01427).

    L is the loss of another method, ``base``, on the logits

        z_bk <- (z_bk - mean_k z_bk) / (std_k z_bk + 1e-7)

    of student and teacher, std with divisor K - 1. Written as a method of its own, around the other one in
    the notation of losses: ``logit_std``, ``logit_std(base="dkd(beta=6)")``, ``logit_std + 0.8*crd``.

    The weights here are those for KD: T = 2, weight 9, cross-entropy 0.1. For another base write them, for
    example ``1*ce + 9*logit_std(base="dist")``. The authors chose settings for each pair on the test set;
    comparisons here use one setting for all pairs.

    Degenerate input: a sample whose logits are equal (their deviation is within 8 machine epsilons of the largest one)
    has zeros, with zero gradient. Logits beyond 1e9 are divided by the largest one first.

    Args:
        base: a method that reads logits only, with its settings, in the notation of losses.
    """

    name = "logit_std"
    title = "LSKD"
    paper = "Sun, Ren, Li, Wang, Cao, CVPR 2024, arXiv 2403.01427"
    formula = "L = base(Z(z_s), Z(z_t)),  Z(z) = (z - mean z) / (std z + 1e-7)"
    reads = frozenset({"logits"})
    weight = 9.0
    ce_weight = 0.1

    def __init__(self, *, base: str = "kd(T=2)") -> None:
        super().__init__()
        self.base = base
        self.method = _logit_method(base)
        for fact in ("relates_samples", "per_sample", "needs_labels", "waits"):
            setattr(self, fact, getattr(self.method, fact))

    def setup(self, setup: Setup) -> None:
        """Set the base method up."""
        self.method.setup(setup)

    def start_epoch(self, epoch: int) -> None:
        """Tell the base method."""
        self.method.start_epoch(epoch)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the base method on standardised logits (B, K)."""
        student = student._replace(logits=standardize(student.logits))
        teacher = teacher._replace(logits=standardize(teacher.logits))
        return self.method.terms(student, teacher, batch)

    def loss(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Combine the terms as the base method does."""
        return self.method.loss(terms)


def standardize(z: Tensor) -> Tensor:
    """Z of logits (B, K): rows of mean 0 and deviation 1; zeros, with zero gradient, where they do not vary."""
    if z.shape[1] < 2:
        return z * 0.0
    z = tame(z)
    std = z.std(dim=1, keepdim=True)
    varies = std > rounding_noise(z, 1)
    standard = (z - z.mean(dim=1, keepdim=True)) / (torch.where(varies, std, torch.ones_like(std)) + 1e-7)
    return torch.where(varies, standard, torch.zeros_like(z))


def _logit_method(text: str) -> Method:
    from itrd.methods import create_method
    from itrd.methods.expression import CROSS_ENTROPY, parse

    terms = parse(text)
    if len(terms) == 1 and terms[0].weight is None and terms[0].name not in (CROSS_ENTROPY, "logit_std"):
        method = create_method(terms[0].name, **terms[0].settings)
        if method.reads == {"logits"}:
            return method
    raise UserError(
        f"logit_std: base must be one method that reads logits only, such as kd(T=2) or dkd, got {text!r}"
    )

"""DIST: class probabilities correlate with the teacher's, along classes and along the batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from itrd.errors import UserError
from itrd.methods.base import Batch, Method
from itrd.methods.functional import normalize_rows, rounding_noise
from itrd.models.base import Outputs


class DIST(Method):
    """Knowledge Distillation from A Stronger Teacher (Huang, You, Wang, Qian, Xu, NeurIPS 2022).

    arXiv 2205.10536. With p_s = softmax(z_s / T), p_t = softmax(z_t / T) and r Pearson's correlation,

        inter = T^2 mean_b (1 - r(p_s[b, :], p_t[b, :])),
        intra = T^2 mean_k (1 - r(p_s[:, k], p_t[:, k])),
        L = beta inter + gamma intra.

    Published settings: CIFAR-100 T = 4, beta = gamma = 2; ImageNet T = 1, beta = gamma = 1 or 2.

    Deviation of the published code from the paper: the factor T^2 is in the code only. ``times_T2`` decides.

    Degenerate input: a row or column without variation (its deviations from the mean are within 8 machine
    epsilons of its largest entry, or its norm is below 1e-12; a batch of one for the columns) has no
    correlation; r = 0 with zero gradient.

    Args:
        beta: weight of the inter-class term.
        gamma: weight of the intra-class term.
        T: temperature, > 0.
        times_T2: multiply both terms by T^2.
    """

    name = "dist"
    title = "DIST"
    paper = "Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv 2205.10536"
    formula = "L = T^2 (beta mean_b (1 - r(rows of p)) + gamma mean_k (1 - r(columns of p)))"
    reads = frozenset({"logits"})

    def __init__(
        self, *, beta: float = 2.0, gamma: float = 2.0, T: float = 4.0, times_T2: bool = True
    ) -> None:
        super().__init__()
        if not T > 0:
            raise UserError(f"dist: the temperature T must be positive, got {T}")
        self.beta = beta
        self.gamma = gamma
        self.T = T
        self.times_T2 = times_T2

    def term_weights(self) -> Mapping[str, float]:
        """Return beta and gamma."""
        return {"inter": self.beta, "intra": self.gamma}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"inter": scalar, "intra": scalar}`` for logits (B, K)."""
        p_s, p_t = F.softmax(student.logits / self.T, dim=1), F.softmax(teacher.logits / self.T, dim=1)
        scale = self.T**2 if self.times_T2 else 1.0
        return {
            "inter": scale * (1 - pearson(p_s, p_t)).mean(),
            "intra": scale * (1 - pearson(p_s.T, p_t.T)).mean(),
        }


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the rows of two matrices (N, M): (N,), between -1 and 1."""
    return (_standard(a) * _standard(b)).sum(dim=1)


def _standard(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    varies = centred.detach().abs().amax(dim=1, keepdim=True) > rounding_noise(x, 1)
    return normalize_rows(torch.where(varies, centred, torch.zeros_like(centred)))

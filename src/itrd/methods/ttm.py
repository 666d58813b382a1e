"""TTM: temperature on the teacher only, as a power transform of its probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from itrd.errors import UserError
from itrd.methods.base import Batch, Method
from itrd.models.base import Outputs


class TTM(Method):
    """Transformed Teacher Matching (Zheng, Yang, ICLR 2024, arXiv 2402.11148).

    With p = softmax(z_t), the power transform of exponent g (= 1 / temperature) and its normaliser,

        q_bk = p_bk^g / U_b,   U_b = sum_k p_bk^g,
        L = mean_b KL(q_b || softmax(z_s)_b).

    The student keeps temperature 1, and there is no factor T^2.

    Published commands: vgg13 to vgg8 with g = 0.1 and weight 45 beside a cross-entropy of weight 1. No
    deviation from the paper is known. Since q = softmax(g z_t), nothing underflows on the way.

    Args:
        g: exponent, > 0; below 1 it flattens the teacher's probabilities.
    """

    name = "ttm"
    title = "TTM"
    paper = "Zheng, Yang, ICLR 2024, arXiv 2402.11148"
    formula = "L = mean_b KL(p_b^g / U_b || softmax(z_s)_b),  p = softmax(z_t)"
    reads = frozenset({"logits"})
    relates_samples = False
    weight = 45.0

    def __init__(self, *, g: float = 0.1) -> None:
        super().__init__()
        check_exponent(self.name, g)
        self.g = g

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"ttm": scalar}`` for logits (B, K)."""
        return {"ttm": transformed_kl(student.logits, teacher.logits, self.g).mean()}


def transformed_kl(z_s: Tensor, z_t: Tensor, g: float) -> Tensor:
    """KL(q || softmax(z_s)) per sample (B,), q the transformed probabilities of logits (B, K)."""
    q = F.softmax(g * z_t, dim=1)
    return F.kl_div(F.log_softmax(z_s, dim=1), q, reduction="none").sum(dim=1)


def check_exponent(name: str, g: float) -> None:
    """Refuse an exponent that is not positive."""
    if not g > 0:
        raise UserError(f"{name}: the exponent g must be positive, got {g}")

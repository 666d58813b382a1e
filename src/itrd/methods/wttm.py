"""WTTM: TTM with every sample weighted by how smooth the teacher is on it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from itrd.methods.base import Batch, Method
from itrd.methods.ttm import check_exponent, transformed_kl
from itrd.models.base import Outputs


class WTTM(Method):
    """Weighted Transformed Teacher Matching (Zheng, Yang, ICLR 2024, arXiv 2402.11148).

    As :class:`itrd.methods.ttm.TTM`, with every sample weighted by its normaliser, which is large where the teacher's
    probabilities are smooth:

        L = mean_b U_b KL(q_b || softmax(z_s)_b).

    Published commands: vgg13 to vgg8 with CRD of weight 0.8 and this with g = 0.2 and weight 4. No deviation
    from the paper is known.

    Args:
        g: exponent, > 0.
    """

    name = "wttm"
    title = "WTTM"
    paper = "Zheng, Yang, ICLR 2024, arXiv 2402.11148"
    formula = "L = mean_b U_b KL(p_b^g / U_b || softmax(z_s)_b),  U_b = sum_k p_bk^g"
    reads = frozenset({"logits"})
    relates_samples = False
    weight = 4.0

    def __init__(self, *, g: float = 0.2) -> None:
        super().__init__()
        check_exponent(self.name, g)
        self.g = g

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"wttm": scalar}`` for logits (B, K)."""
        weights = (self.g * F.log_softmax(teacher.logits, dim=1)).exp().sum(dim=1)
        return {"wttm": (weights * transformed_kl(student.logits, teacher.logits, self.g)).mean()}

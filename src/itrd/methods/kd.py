"""KD: the student matches the teacher's softened class probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from itrd.errors import UserError
from itrd.methods.base import Batch, Method
from itrd.models.base import Outputs


class KD(Method):
    """Knowledge distillation with temperature (Hinton, Vinyals, Dean, 2015, arXiv 1503.02531).

    With p = softmax(z_t / T) and q = softmax(z_s / T),

        L = (T^2 / B) sum_b sum_k p_bk (log p_bk - log q_bk),

    a sum over classes and a mean over the batch; terms with p = 0 count 0.

    Deviation of the published benchmark code from the paper: none of substance. The paper mixes
    (1 - a) CE + a KD; the benchmark uses the weights 0.1 and 0.9 and T = 4.

    Args:
        T: temperature, > 0.
    """

    name = "kd"
    title = "KD"
    paper = "Hinton, Vinyals, Dean, 2015, arXiv 1503.02531"
    formula = "L = T^2 KL(softmax(z_t / T) || softmax(z_s / T))"
    reads = frozenset({"logits"})
    relates_samples = False
    weight = 0.9
    weight_in_sum = 1.0
    ce_weight = 0.1

    def __init__(self, *, T: float = 4.0) -> None:
        super().__init__()
        if not T > 0:
            raise UserError(f"kd: the temperature T must be positive, got {T}")
        self.T = T

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"kd": scalar}`` for logits (B, K)."""
        log_q = F.log_softmax(student.logits / self.T, dim=1)
        p = F.softmax(teacher.logits / self.T, dim=1)
        return {"kd": F.kl_div(log_q, p, reduction="sum") * self.T**2 / p.shape[0]}

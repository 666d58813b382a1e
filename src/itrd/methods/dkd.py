"""DKD: KD split into the target class against the rest, and the classes of the rest among themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from itrd.errors import UserError
from itrd.methods.base import Batch, Method
from itrd.methods.stages import check_epochs
from itrd.models.base import Outputs


class DKD(Method):
    """Decoupled Knowledge Distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679).

    With p = softmax(z_t / T), q = softmax(z_s / T), y the label, b(p) = (p_y, 1 - p_y), and p^, q^ the
    softmax over the classes other than y,

        TCKD = T^2 mean_b KL(b(p) || b(q)),    NCKD = T^2 mean_b KL(p^ || q^),
        L = min(epoch / warmup, 1) (alpha TCKD + beta NCKD),    epoch = 1, 2, ...

    Published beta: 8 (resnet32x4 to resnet8x4, ShuffleV1 and ShuffleV2; ResNet50 to MobileNetV2; wrn_40_2 to
    ShuffleV1), 2 (resnet56 to resnet20, resnet110 to resnet32), 6 (vgg13 to vgg8 and MobileNetV2; wrn_40_2
    to wrn_16_2 and wrn_40_1).

    Numerical safety. The published code takes log(q_y) and log(1 - q_y) of probabilities, -inf where one
    underflows, and leaves y out of NCKD by subtracting 1000 from its logit. Here all logarithms come from
    log-softmax and log-sum-exp, and y is left out exactly; the same numbers otherwise.

    Args:
        alpha: weight of TCKD.
        beta: weight of NCKD.
        T: temperature, > 0.
        warmup: number of epochs over which the loss grows to its full weight; 0 for none.
    """

    name = "dkd"
    title = "DKD"
    paper = "Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679"
    formula = "L = min(epoch/warmup, 1) (alpha TCKD + beta NCKD)"
    reads = frozenset({"logits"})
    needs_labels = True
    relates_samples = False

    progress: Tensor

    def __init__(self, *, alpha: float = 1.0, beta: float = 8.0, T: float = 4.0, warmup: int = 20) -> None:
        super().__init__()
        if not T > 0:
            raise UserError(f"dkd: the temperature T must be positive, got {T}")
        self.alpha = alpha
        self.beta = beta
        self.T = T
        self.warmup = check_epochs(self.name, "warmup", warmup)
        # A tensor, filled in place, so that a captured step sees it change. Set at the start of every epoch.
        self.register_buffer("progress", torch.ones(()), persistent=False)

    def start_epoch(self, epoch: int) -> None:
        """Set the warm-up factor."""
        self.progress.fill_(min(epoch / self.warmup, 1.0) if self.warmup else 1.0)

    def term_weights(self) -> Mapping[str, float]:
        """Return alpha and beta."""
        return {"target": self.alpha, "nontarget": self.beta}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"target": TCKD, "nontarget": NCKD}`` for logits (B, K), without the warm-up factor."""
        z_s, z_t = student.logits / self.T, teacher.logits / self.T
        is_target = torch.arange(z_s.shape[1], device=z_s.device) == batch.labels[:, None]
        target, nontarget = target_kl(z_s, z_t, is_target), nontarget_kl(z_s, z_t, is_target)
        return {"target": target.mean() * self.T**2, "nontarget": nontarget.mean() * self.T**2}

    def loss(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the terms times the warm-up factor."""
        return self.progress * super().loss(terms)


def target_kl(z_s: Tensor, z_t: Tensor, is_target: Tensor) -> Tensor:
    """KL(b(p) || b(q)) per sample (B,), from logits (B, K) already divided by T."""
    log_q, log_p = _log_binary(z_s, is_target), _log_binary(z_t, is_target)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def nontarget_kl(z_s: Tensor, z_t: Tensor, is_target: Tensor) -> Tensor:
    """KL(p^ || q^) per sample (B,), from logits (B, K) already divided by T."""
    log_q = F.log_softmax(z_s.masked_fill(is_target, -torch.inf), dim=1)
    log_p = F.log_softmax(z_t.masked_fill(is_target, -torch.inf), dim=1)
    return (log_p.exp() * (log_p - log_q).masked_fill(is_target, 0.0)).sum(dim=1)


def _log_binary(z: Tensor, is_target: Tensor) -> Tensor:
    """(log p_y, log(1 - p_y)): (B, 2)."""
    log_p = F.log_softmax(z, dim=1)
    target = log_p.masked_fill(~is_target, -torch.inf).logsumexp(dim=1)
    rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return torch.stack([target, rest], dim=1)

"""CC: differences between the networks correlate over consecutive samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.models.base import Outputs


class Correlation(Method):
    """Correlation Congruence for Knowledge Distillation (Peng et al., ICCV 2019, arXiv 1904.01802).

    With embeddings f_s (B, D_s), f_t (B, D_t) and trainable linear maps E_s, E_t to ``feat_dim`` numbers,

        Delta_b = |E_s(f_s)_b - E_t(f_t)_b| elementwise,
        L = 1 / (B - 1) sum_{b=1}^{B-1} sum_d Delta_bd Delta_{b+1,d}.

    Where the published benchmark code, which this follows, differs from the paper: largely. The paper
    compares correlation matrices of a Gaussian kernel (by a Taylor series) and adds an instance term; the
    code multiplies consecutive samples of the batch only, so its value depends on the order in the batch. It
    is what the authors of CC gave to the authors of the benchmark.

    Degenerate input: a batch of one has no consecutive samples; L = 0, where the published code gives NaN.

    Args:
        feat_dim: width of the two linear maps.
    """

    name = "correlation"
    title = "CC"
    paper = "Peng, Jin, Liu, Zhou, Wu, Liu, Zhou, Zhang, ICCV 2019, arXiv 1904.01802"
    formula = "L = 1/(B-1) sum_b Delta_b . Delta_{b+1},  Delta = |E_s(f_s) - E_t(f_t)|"
    reads = frozenset({"embedding"})
    weight = 0.02

    embed_s: nn.Linear | None
    embed_t: nn.Linear | None

    def __init__(self, *, feat_dim: int = 128) -> None:
        super().__init__()
        if feat_dim < 1:
            raise UserError(f"correlation: feat_dim must be at least 1, got {feat_dim}")
        self.feat_dim = feat_dim
        self.embed_s = None
        self.embed_t = None

    def setup(self, setup: Setup) -> None:
        """Build the two linear maps."""
        assert setup.student.embedding is not None
        assert setup.teacher.embedding is not None
        self.embed_s = nn.Linear(setup.student.embedding.shape[1], self.feat_dim)
        self.embed_t = nn.Linear(setup.teacher.embedding.shape[1], self.feat_dim)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"correlation": scalar}`` for embeddings (B, D_s), (B, D_t)."""
        assert student.embedding is not None
        assert teacher.embedding is not None
        if self.embed_s is None or self.embed_t is None:
            raise UserError("correlation: call setup() with example outputs before the first loss")
        return {
            "correlation": consecutive_loss(self.embed_s(student.embedding), self.embed_t(teacher.embedding))
        }


def consecutive_loss(e_s: Tensor, e_t: Tensor) -> Tensor:
    """L of two embedded batches (B, d); scalar."""
    # sqrt(B - 1) is divided out before the product, so that a sum of large products does not overflow.
    delta = (e_s - e_t).abs() / max(len(e_s) - 1, 1) ** 0.5
    return torch.einsum("bd,bd->", delta[:-1], delta[1:])

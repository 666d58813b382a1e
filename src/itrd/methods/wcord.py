"""WCoRD: CRD's contrast as a Wasserstein distance, and an optimal transport between the batches' features."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.methods.contrast import ContrastMemory, Normalizer, check_contrast_settings, contrast_loss, single
from itrd.methods.functional import normalize_rows
from itrd.models.base import Outputs

CRITICS = ("dual", "nce")


class WCoRD(Method):
    """Wasserstein contrastive representation distillation, in our own reading of the paper.

    Chen, Wang, Gan, Liu, Henao, Carin, CVPR 2021, arXiv 2012.08674. **No code was published**, and there are
    no reference numbers; the accuracies of the paper's tables are the only check.

    Stated in the paper's abstract: two terms. A *global* one uses the dual form of the Wasserstein distance
    and is a contrastive objective that bounds the mutual information of teacher and student; a *local* one
    uses the primal form inside a batch to match the two distributions of features.

    Our reading of everything else. Embeddings f_s (B, D_s), f_t (B, D_t); heads P_s, P_t, linear maps to R^d
    divided by their largest singular value (spectral normalisation, one power iteration per training step):

        v_s = P_s(f_s) / ||.||,   v_t = P_t(f_t) / ||.||.

    *Global.* Memories, positives, negatives and update are CRD's (:class:`~itrd.methods.contrast.ContrastMemory`).
    With the scores s_ij = <v_i, M[n_ij]> against the other network's memory, j = 0 the positive,

        L_G = sum over both sides of -(1/B) sum_i [ s_i0 - (M/K) sum_{j>=1} s_ij ]                (``dual``).

    The critic <v_s, v_t> is Lipschitz in each head's output; through the division by ||.|| it is so in the
    features only where these stay away from zero. M = 1 balances the two expectations of the dual; the
    paper's text has the number of negatives, M = K, in the place of M. ``nce`` puts CRD's loss with its
    temperature on the same heads instead.

    *Local.* Cost C_ij = 1 - <v_s,i, v_t,j>, both marginals uniform, 1/B; pi the entropic transport plan
    (:func:`sinkhorn_plan`), taken as a constant of the gradient (envelope theorem, up to the entropy):

        L_L = sum_ij pi_ij C_ij.

    The teacher's head is detached here, which excludes that both heads collapse to a point.

        L = lambda_1 L_G + lambda_2 L_L.

    From memory of the paper, not verified: lambda_1 = 0.8, lambda_2 = 0.05 on CIFAR-100, cosine cost, Sinkhorn
    iterations, memory as in CRD. Chosen here: the regularisation 0.1 and the 50 iterations, M = 1, and the
    detached teacher's head.

    An embedding of norm below 1e-12 counts as zero, with zero gradient.

    Args:
        feat_dim: d.
        K: negatives per sample.
        critic: ``dual`` or ``nce``.
        M: weight of the negatives in the dual.
        T: temperature of ``nce``; without effect in ``dual``.
        momentum: mu of the memory's update.
        mode: ``exact`` or ``relax``, as in CRD.
        lambda_1: weight of L_G.
        lambda_2: weight of L_L.
    """

    name = "wcord"
    title = "WCoRD"
    paper = "Chen, Wang, Gan, Liu, Henao, Carin, CVPR 2021, arXiv 2012.08674 (own reading)"
    formula = "L = lambda_1 mean(-s_0 + (M/K) sum_j s_j) + lambda_2 sum_ij pi_ij (1 - <v_s,i, v_t,j>)"
    reads = frozenset({"embedding"})
    per_sample = True
    needs_labels = True

    head_s: nn.Module | None
    head_t: nn.Module | None
    memory: ContrastMemory | None

    def __init__(
        self,
        *,
        feat_dim: int = 128,
        K: int = 16384,
        critic: str = "dual",
        M: float = 1.0,
        T: float = 0.07,
        momentum: float = 0.5,
        mode: str = "exact",
        lambda_1: float = 0.8,
        lambda_2: float = 0.05,
    ) -> None:
        super().__init__()
        check_contrast_settings(self.name, feat_dim=feat_dim, K=K, T=T, momentum=momentum, mode=mode)
        if critic not in CRITICS:
            raise UserError(f"wcord: critic must be one of {', '.join(CRITICS)}, got {critic!r}")
        self.feat_dim = feat_dim
        self.K = K
        self.critic = critic
        self.M = M
        self.T = T
        self.momentum = momentum
        self.mode = mode
        self.lambda_1 = lambda_1
        self.lambda_2 = lambda_2
        self.head_s = None
        self.head_t = None
        self.memory = None

    def setup(self, setup: Setup) -> None:
        """Build the two heads, and the memories for the training set."""
        assert setup.student.embedding is not None
        assert setup.teacher.embedding is not None
        n = len(setup.train_labels)
        self.head_s = spectral_norm(nn.Linear(setup.student.embedding.shape[1], self.feat_dim))
        self.head_t = spectral_norm(nn.Linear(setup.teacher.embedding.shape[1], self.feat_dim))
        self.memory = ContrastMemory(
            setup.train_labels, self.feat_dim, K=self.K, mode=self.mode, momentum=single(self.momentum)
        )
        self.normalizer_s = Normalizer(n)
        self.normalizer_t = Normalizer(n)

    def term_weights(self) -> Mapping[str, float]:
        """Return lambda_1 and lambda_2."""
        return {"global": self.lambda_1, "local": self.lambda_2}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"global": scalar, "local": scalar}`` for embeddings (B, D_s), (B, D_t)."""
        assert student.embedding is not None
        assert teacher.embedding is not None
        if self.head_s is None or self.head_t is None or self.memory is None:
            raise UserError("wcord: call setup() with example outputs before the first loss")
        v_s = normalize_rows(self.head_s(student.embedding))
        v_t = normalize_rows(self.head_t(teacher.embedding))
        with torch.no_grad():
            contrast = self.memory.draw(batch.indices)
        scores_s, scores_t = self.memory.score(v_s, v_t, contrast)
        if self.critic == "dual":
            global_loss = dual_loss(scores_s, self.M) + dual_loss(scores_t, self.M)
        else:
            scores_s, scores_t = scores_s / single(self.T), scores_t / single(self.T)
            loss_s = contrast_loss(scores_s, self.normalizer_s(scores_s), len(self.memory))
            loss_t = contrast_loss(scores_t, self.normalizer_t(scores_t), len(self.memory))
            global_loss = loss_s + loss_t
        if self.training:
            self.memory.update(batch.indices, v_s, v_t)
        return {"global": global_loss, "local": transport_loss(v_s, v_t.detach())}


def dual_loss(scores: Tensor, weight: float = 1.0) -> Tensor:
    """-(1/B) sum_i [s_i0 - (weight / K) sum_j s_ij] of scores (B, 1 + K), the positive first; scalar."""
    return -(scores[:, 0] - weight * scores[:, 1:].mean(dim=1)).mean()


def transport_loss(v_s: Tensor, v_t: Tensor) -> Tensor:
    """L_L of unit vectors (B, d), (B', d); scalar."""
    cost = 1 - v_s @ v_t.T
    return (sinkhorn_plan(cost) * cost).sum()


@torch.no_grad()
def sinkhorn_plan(cost: Tensor, regularization: float = 0.1, iterations: int = 50) -> Tensor:
    """Entropic transport plan (n, m) for costs (n, m) with uniform marginals 1/n, 1/m.

    Minimises sum pi C - regularization H(pi) by Sinkhorn's iterations on logarithms, columns first, from zero
    potentials. After the last iteration the row sums are exact and the column sums approximate.
    """
    n, m = cost.shape
    kernel = -cost / regularization
    u = cost.new_zeros(n)
    v = cost.new_zeros(m)
    for _ in range(iterations):
        v = -math.log(m) - (kernel + u[:, None]).logsumexp(dim=0)
        u = -math.log(n) - (kernel + v[None, :]).logsumexp(dim=1)
    return (kernel + u[:, None] + v[None, :]).exp()

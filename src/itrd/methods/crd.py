"""CRD: student and teacher embed a sample close to each other and far from samples of other classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.methods.contrast import ContrastMemory, Normalizer, check_contrast_settings, contrast_loss, single
from itrd.methods.functional import normalize_rows
from itrd.models.base import Outputs


class CRD(Method):
    """Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699).

    Reads the embeddings f_s (B, D_s), f_t (B, D_t); trains two linear maps to R^d:

        v_s = Linear_s(f_s) / ||.||,   v_t = Linear_t(f_t) / ||.||.

    For sample i with positive n_i0 and negatives n_i1..n_iK (:class:`~itrd.methods.contrast.ContrastMemory`)
    and the memories M_s, M_t of both networks, with c = K / N, eps = 1e-7,

        o_s,ij = exp(<v_s,i, M_t[n_ij]> / tau) / Z_s,     o_t,ij = exp(<v_t,i, M_s[n_ij]> / tau) / Z_t,
        L_side = -(1/B) sum_i [ log(o_i0 / (o_i0 + c + eps)) + sum_{j>=1} log(c / (o_ij + c + eps)) ],
        L = L_s + L_t.

    Z = N mean(exp(...)) over the first batch's scores, never changed afterwards. After scoring, row y_i of M_s
    becomes normalise(mu M_s[y_i] + (1 - mu) v_s,i), y_i the sample itself also with ``relax``; M_t likewise.
    In eval mode neither Z nor memory changes.

    Where the published code, which this follows, differs from the paper:
        * positives too come from the memory of the other network: the batch's own embedding of the other
          network is never scored;
        * the paper's critic has no Z; the code fixes it by the first batch;
        * tau = 0.07 (paper: 0.1 for CIFAR), and it is rounded to single precision: 0.07000000029802322;
        * eps is added;
        * memory rows are not unit vectors before their first update.

    Where this differs from the published code: the memories, Z and all else are in checkpoints (the code loses
    them); an embedding of norm below 1e-12 counts as zero, with zero gradient (there: division by zero);
    logarithms are taken without forming o, see :func:`~itrd.methods.contrast.contrast_loss`; negatives are
    drawn on the device from the epoch's seed, from the same distribution (there: from NumPy's global generator
    inside the loader's workers, which with PyTorch before 1.9 share one stream and repeat it in every epoch). Its
    alias-method sampler, which does not exclude the own class, is left out: its own driver never uses it. A
    sample that occurs twice in a batch leaves one of its two embeddings in the memory, in no defined order, as
    in the code.

    Args:
        feat_dim: d.
        K: negatives per sample.
        T: temperature tau.
        momentum: mu.
        mode: ``exact``: the positive is the sample itself; ``relax``: any sample of its class.
    """

    name = "crd"
    title = "CRD"
    paper = "Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699"
    formula = "L = -mean [log o_0/(o_0 + K/N) + sum_j log (K/N)/(o_j + K/N)],  o = exp(<v, M> / tau) / Z, both sides"
    reads = frozenset({"embedding"})
    per_sample = True
    needs_labels = True
    weight = 0.8

    embed_s: nn.Linear | None
    embed_t: nn.Linear | None
    memory: ContrastMemory | None

    def __init__(
        self,
        *,
        feat_dim: int = 128,
        K: int = 16384,
        T: float = 0.07,
        momentum: float = 0.5,
        mode: str = "exact",
    ) -> None:
        super().__init__()
        check_contrast_settings(self.name, feat_dim=feat_dim, K=K, T=T, momentum=momentum, mode=mode)
        self.feat_dim = feat_dim
        self.K = K
        self.T = T
        self.momentum = momentum
        self.mode = mode
        self.embed_s = None
        self.embed_t = None
        self.memory = None

    def setup(self, setup: Setup) -> None:
        """Build the two linear maps, and the memories for the training set."""
        assert setup.student.embedding is not None
        assert setup.teacher.embedding is not None
        n = len(setup.train_labels)
        self.embed_s = nn.Linear(setup.student.embedding.shape[1], self.feat_dim)
        self.embed_t = nn.Linear(setup.teacher.embedding.shape[1], self.feat_dim)
        self.memory = ContrastMemory(
            setup.train_labels, self.feat_dim, K=self.K, mode=self.mode, momentum=single(self.momentum)
        )
        self.normalizer_s = Normalizer(n)
        self.normalizer_t = Normalizer(n)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"crd": scalar}`` for embeddings (B, D_s), (B, D_t)."""
        assert student.embedding is not None
        assert teacher.embedding is not None
        if self.embed_s is None or self.embed_t is None or self.memory is None:
            raise UserError("crd: call setup() with example outputs before the first loss")
        v_s = normalize_rows(self.embed_s(student.embedding))
        v_t = normalize_rows(self.embed_t(teacher.embedding))
        with torch.no_grad():
            contrast = self.memory.draw(batch.indices)
        scores_s, scores_t = (s / single(self.T) for s in self.memory.score(v_s, v_t, contrast))
        loss_s = contrast_loss(scores_s, self.normalizer_s(scores_s), len(self.memory))
        loss_t = contrast_loss(scores_t, self.normalizer_t(scores_t), len(self.memory))
        if self.training:
            self.memory.update(batch.indices, v_s, v_t)
        return {"crd": loss_s + loss_t}

"""What the contrastive methods share: memory banks, the choice of negatives, and the contrastive loss."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.functional import normalize_rows

EPS = 1e-7
MODES = ("exact", "relax")


class ContrastMemory(nn.Module):
    """One remembered embedding per training sample and network, and a sampler of contrasts.

    Both banks (N, d) begin uniform in (-sqrt(3/d), sqrt(3/d)): rows of expected squared norm 1 that are not
    unit vectors. They live on the training device and are part of checkpoints.

    **Which samples.** For a sample of class c: the positive is the sample itself (``exact``) or any sample of
    its class (``relax``); the K negatives are drawn without replacement, every subset with the same
    probability, from the N - n_c samples of other classes; with replacement where K exceeds N - n_c. This is
    the distribution of the published code. They are drawn on the device, from its default generator, for the
    whole batch at once: every sample of the training set gets a random key, own class keys go to the end, and
    the K smallest are taken. Single-precision keys tie now and then; a tie at the K-th place is decided by
    position, which changes no probability by more than about 1e-6.

    **Cost.** At N = 50,000, B = 64, K = 16,384 on one CPU core: 0.04 s to draw, where sampling with
    replacement would take 0.01 s; and 0.03 s to score, forward and backward, as one product with the whole
    bank from which the K scores are gathered, where gathering the K rows first takes 0.5 s and 0.5 GB.

    Args:
        labels: (N,) int64 labels of the whole training set.
        width: d.
        K: number of negatives.
        mode: ``exact`` or ``relax``.
        momentum: mu of the update.

    Raises:
        UserError: a setting out of range, or a training set of a single class.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    by_class: Tensor
    counts: Tensor
    ends: Tensor

    def __init__(self, labels: Tensor, width: int, *, K: int, mode: str, momentum: float) -> None:
        super().__init__()
        labels = labels.cpu()
        counts = labels.bincount()
        if int((counts > 0).sum()) < 2:
            raise UserError("negatives come from other classes, but all training samples have one label")
        self.k = K
        self.mode = mode
        self.momentum = momentum
        bound = math.sqrt(3 / width)
        for side in ("student", "teacher"):
            self.register_buffer(side, (torch.rand(len(labels), width) * 2 - 1) * bound)
        # Samples sorted by class: class c fills the places ends[c] - counts[c] to ends[c] - 1 of by_class.
        tables = {
            "labels": labels,
            "by_class": labels.argsort(stable=True),
            "counts": counts,
            "ends": counts.cumsum(0),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        others = len(labels) - counts[counts > 0]
        self._fewest_others, self._most_others = int(others.min()), int(others.max())

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def draw(self, indices: Tensor) -> Tensor:
        """Choose (B, 1 + K) samples, the positive first, for samples (B,) of the training set."""
        own = self.labels[indices]
        if self.mode == "relax":
            start, count = self.ends[own] - self.counts[own], self.counts[own]
            indices = self.by_class[start + _below(count)]
        if self.k <= self._fewest_others:
            negatives = self._distinct(own)
        elif self.k > self._most_others:
            negatives = self._repeated(own)
        else:
            enough = len(self) - self.counts[own] >= self.k
            negatives = torch.where(enough[:, None], self._distinct(own), self._repeated(own))
        return torch.cat([indices[:, None], negatives], dim=1)

    def _distinct(self, own: Tensor) -> Tensor:
        keys = torch.rand(len(own), len(self), device=own.device)
        keys.masked_fill_(self.labels == own[:, None], 2.0)
        return keys.topk(self.k, dim=1, largest=False, sorted=False).indices

    def _repeated(self, own: Tensor) -> Tensor:
        others = len(self) - self.counts[own]
        rank = _below(others[:, None].expand(-1, self.k))
        place = (self.ends[own][:, None] + rank) % len(self)  # cyclic, beginning behind the own class
        return self.by_class[place]

    def score(self, v_s: Tensor, v_t: Tensor, contrast: Tensor) -> tuple[Tensor, Tensor]:
        """Inner products (B, 1 + K) of each side's embeddings (B, d) with the *other* side's memory."""
        # The clones stay what they are when update() writes before the backward pass.
        scores_s = v_s @ self.teacher.clone().T
        scores_t = v_t @ self.student.clone().T
        return scores_s.gather(1, contrast), scores_t.gather(1, contrast)

    @torch.no_grad()
    def update(self, indices: Tensor, v_s: Tensor, v_t: Tensor) -> None:
        """Move rows ``indices`` (B,), all different, towards the embeddings: normalise(mu row + (1 - mu) v)."""
        for bank, v in ((self.student, v_s), (self.teacher, v_t)):
            rows = self.momentum * bank[indices] + (1 - self.momentum) * v
            bank.index_copy_(0, indices, normalize_rows(rows))


def check_contrast_settings(
    method: str, *, feat_dim: int, K: int, T: float, momentum: float, mode: str
) -> None:
    """Refuse settings out of range.

    Raises:
        UserError: names the setting.
    """
    if feat_dim < 1:
        raise UserError(f"{method}: feat_dim must be at least 1, got {feat_dim}")
    if K < 1:
        raise UserError(f"{method}: K, the number of negatives, must be at least 1, got {K}")
    if not T > 0:
        raise UserError(f"{method}: the temperature T must be positive, got {T}")
    if not 0 <= momentum <= 1:
        raise UserError(f"{method}: momentum must be between 0 and 1, got {momentum}")
    if mode not in MODES:
        raise UserError(f"{method}: mode must be one of {', '.join(MODES)}, got {mode!r}")


def _below(bounds: Tensor) -> Tensor:
    """Random integers, uniform in 0..bound-1 for each entry of ``bounds`` (up to a bias of bound / 2^62)."""
    return torch.randint(2**62, bounds.shape, device=bounds.device) % bounds


class Normalizer(nn.Module):
    """The constant Z = N mean(exp(scores)), fixed by the first batch that it sees in train mode.

    Kept as log Z, without gradient, with a flag on the device, both part of checkpoints; no step has to ask
    the device whether it is the first.
    """

    log_z: Tensor
    known: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.register_buffer("log_z", torch.zeros(()))
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def forward(self, scores: Tensor) -> Tensor:
        """Return log Z (scalar) for scores (B, 1 + K) divided by the temperature."""
        first = scores.flatten().logsumexp(0) + math.log(self.n / scores.numel())
        log_z = torch.where(self.known, self.log_z, first)
        if self.training:
            self.log_z.copy_(log_z)
            self.known.fill_(True)
        return log_z


def single(value: float) -> float:
    """Round to single precision, in which the published code keeps its constants."""
    return float(np.float32(value))


def contrast_loss(scores: Tensor, log_z: Tensor, n: int) -> Tensor:
    """Noise-contrastive loss of scores (B, 1 + K) divided by the temperature, the positive first; scalar.

    With o_ij = exp(score_ij) / Z, c = K / n and eps = 1e-7,

        L = -(1/B) sum_i [ log(o_i0 / (o_i0 + c + eps)) + sum_{j>=1} log(c / (o_ij + c + eps)) ],

    computed as log sigmoid(u_i0) and log sigmoid(-u_ij) - log(1 + eps / c), u = log o - log(c + eps): the same
    numbers, without an exponential that could overflow and without the rounding of o + c where o << c.
    """
    c = (scores.shape[1] - 1) / n
    u = scores - log_z - math.log(c + EPS)
    positive = F.logsigmoid(u[:, 0])
    negatives = F.logsigmoid(-u[:, 1:]) - math.log1p(EPS / c)
    return -(positive + negatives.sum(dim=1)).mean()

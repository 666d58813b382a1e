"""RKD: distances and angles between samples are those of the teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from itrd.methods.base import Batch, Method
from itrd.methods.functional import normalize_rows, tame
from itrd.models.base import Outputs


class RKD(Method):
    """Relational Knowledge Distillation (Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068).

    For embeddings e_i (rows of (B, D)), h the smooth L1 function (Huber, beta = 1):

        d_ij = ||e_i - e_j|| / mean of all ||e_i - e_j|| > 0,
        L_distance = mean_ij h(d_s,ij - d_t,ij),
        A_ijk = cos of the angle at e_i between e_j and e_k,
        L_angle = mean_ijk h(A_s,ijk - A_t,ijk),
        L = w_distance L_distance + w_angle L_angle.

    Where the published benchmark code, which this follows, differs from the paper:
        * the means run over all B^2 pairs and B^3 triples, diagonals and degenerate ones included (distance
          0, cosine 0);
        * squared distances are computed as |e_i|^2 + |e_j|^2 - 2 e_i.e_j and clamped at 1e-12. The form
          cancels for close points: two equal rows have a squared distance of rounding noise, up to about
          1e-6 |e|^2 in float32, and enter the mean with it. Kept, because it is part of the published values.

    Degenerate input: a batch of one has no distances; L = 0, where the published code gives NaN. Two rows
    closer than 1e-12 have no direction (cosine 0, zero gradient).

    Args:
        w_distance: weight of the distance term.
        w_angle: weight of the angle term.
    """

    name = "rkd"
    title = "RKD"
    paper = "Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068"
    formula = "L = w_distance mean h(d_s - d_t) + w_angle mean h(A_s - A_t)"
    reads = frozenset({"embedding"})

    def __init__(self, *, w_distance: float = 25.0, w_angle: float = 50.0) -> None:
        super().__init__()
        self.w_distance = w_distance
        self.w_angle = w_angle

    def term_weights(self) -> Mapping[str, float]:
        """Return w_distance and w_angle."""
        return {"distance": self.w_distance, "angle": self.w_angle}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"distance": scalar, "angle": scalar}`` for embeddings (B, D_s), (B, D_t)."""
        assert student.embedding is not None
        assert teacher.embedding is not None
        e_s, e_t = tame(student.embedding, whole=True), tame(teacher.embedding, whole=True)
        return {
            "distance": F.smooth_l1_loss(relative_distances(e_s), relative_distances(e_t)),
            "angle": F.smooth_l1_loss(angles(e_s), angles(e_t)),
        }


def relative_distances(e: Tensor) -> Tensor:
    """d of embeddings (B, D): (B, B), in units of the mean distance."""
    square = e.square().sum(dim=1)
    distance = (square[:, None] + square[None, :] - 2 * (e @ e.T)).clamp(min=1e-12).sqrt()
    diagonal = torch.eye(len(e), dtype=torch.bool, device=e.device)
    distance = distance.masked_fill(diagonal, 0.0)
    pairs = len(e) * (len(e) - 1)  # all of them are > 0 thanks to the clamp
    return distance / (distance.sum() / pairs) if pairs else distance


def angles(e: Tensor) -> Tensor:
    """A of embeddings (B, D): cosines (B, B, B), the first axis is the vertex of the angle."""
    direction = normalize_rows(e[None, :, :] - e[:, None, :])
    return torch.bmm(direction, direction.transpose(1, 2))

"""KDSVD: the relation between consecutive maps, compressed to their main singular vectors, is the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.methods.functional import normalize_rows
from itrd.models.base import Outputs


class KDSVD(Method):
    """Self-supervised Knowledge Distillation Using Singular Value Decomposition (Lee, Kim, Song, ECCV 2018).

    arXiv 1807.06819. Every map is a matrix X (H W, C) per sample, X = U S V^T. The teacher gives its first k
    right vectors v_t, with their singular values s normalised to length 1. The student gives, for each of
    them, the one of its first k + 3 right vectors with the largest |cosine|, with the sign of that cosine.
    With v the vectors times s, v' those of the previous map, and sums over channels c, c' and vectors,

        R_cc' = exp(-(v_c - v'_c')^2 / 8),    L = sum over maps but the first of sum (R_s - R_t)^2 / B.

    Student and teacher need the same channels in every map; the numbers of maps must agree.

    Where this differs from the published benchmark code:
        * there the signs of the teacher's vectors, and with them the value, are whatever the SVD routine
          gives. Here each teacher vector has the sign that makes the sum of its entries positive, so the
          value is reproducible and consecutive maps agree (after a ReLU the first vector has one sign);
        * there H is taken for both sizes of a map; here they are H and W;
        * mdistiller flattens a map to matrices (C H, W) instead, which gives another value;
        * the gradient of a right vector, dv_i = sum_j v_j v_j^T d(X^T X) v_i / (s_i^2 - s_j^2), leaves out
          differences s_i^2 - s_j^2 within rounding (8 machine epsilons of the largest s^2), where it is not
          defined and the published code divides by zero. Non-finite entries count 0 there.

    On a GPU the SVD itself waits for the device, so a step with this method cannot be captured.

    Args:
        k: number of singular vectors of each teacher map, >= 1.
    """

    name = "kdsvd"
    title = "KDSVD"
    paper = "Lee, Kim, Song, ECCV 2018, arXiv 1807.06819"
    formula = "L = sum_i sum (R_s,i - R_t,i)^2 / B,  R = exp(-(v_c - v'_c')^2 / 8)"
    reads = frozenset({"maps"})
    relates_samples = False
    waits = True

    def __init__(self, *, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"kdsvd: k must be at least 1, got {k}")
        self.k = k

    def setup(self, setup: Setup) -> None:
        """Check that the maps of both networks can be compared."""
        c_s, c_t = ([m.shape[1] for m in o.maps] for o in (setup.student, setup.teacher))
        if c_s != c_t or len(c_s) < 2:
            raise UserError(
                "kdsvd needs two or more maps with the same channels in student and teacher, "
                f"got {c_s} and {c_t}; choose networks of one architecture and width"
            )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"kdsvd": scalar}`` for maps (B, C_i, H_i, W_i)."""
        vectors_t = [teacher_vectors(f, self.k) for f in teacher.maps]
        return {"kdsvd": kdsvd_loss(student.maps, vectors_t)}


def kdsvd_loss(maps_s: Sequence[Tensor], vectors_t: Sequence[Tensor]) -> Tensor:
    """L of the student's maps and the teacher's vectors (B, C_i, k); scalar."""
    vectors_s = [aligned_vectors(f, v) for f, v in zip(maps_s, vectors_t, strict=True)]
    losses = []
    for i in range(1, len(vectors_s)):
        r_s, r_t = relation(vectors_s[i], vectors_s[i - 1]), relation(vectors_t[i], vectors_t[i - 1])
        losses.append((r_s - r_t).square().sum() / r_s.shape[0])
    return torch.stack(losses).sum()


def relation(v: Tensor, previous: Tensor) -> Tensor:
    """R of the vectors (B, C, k) of a map and (B, C', k) of the one before it: (B, C, C', k)."""
    return (-(v[:, :, None] - previous[:, None]).square() / 8).exp()


def teacher_vectors(f: Tensor, k: int) -> Tensor:
    """First k right singular vectors of a map, times their normalised singular values: (B, C, k)."""
    s, v = _svd(_matrix(f))
    s, v = s[:, :k], v[:, :, :k]
    sign = torch.where(v.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    return sign * v * normalize_rows(s)[:, None]


def aligned_vectors(f: Tensor, v_t: Tensor) -> Tensor:
    """The student's right vectors closest to v_t (B, C, k), with its signs and lengths; differentiable."""
    x = _matrix(f)
    s, v = _svd(x.detach())
    length = v_t.norm(dim=1, keepdim=True)
    cosine = torch.einsum("bcj,bck->bjk", v[:, :, : v_t.shape[2] + 3], v_t)
    best = cosine.abs().argmax(dim=1, keepdim=True)  # (B, 1, k)
    sign = torch.where(cosine.gather(1, best) < 0, -1.0, 1.0)
    return _differentiable(x, s, v, best[:, 0]) * sign * length


def _matrix(f: Tensor) -> Tensor:
    """(B, C, H, W) as matrices (B, H W, C) with largest entry 1: right vectors do not depend on the scale."""
    x = f.flatten(2).transpose(1, 2)
    return x / x.detach().abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-20)


def _svd(x: Tensor) -> tuple[Tensor, Tensor]:
    _, s, vh = torch.linalg.svd(x, full_matrices=False)
    return s, vh.transpose(1, 2)


def _differentiable(x: Tensor, s: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """The right vectors ``index`` (B, k) of x = U S V^T, with the gradient that perturbation theory gives.

    The value is that of ``v``. The gradient flows through w = x^T x v_i, by
    dv_i = sum_j v_j (v_j^T dw) / (s_i^2 - s_j^2) + (1 - V V^T) dw / s_i^2.
    """
    v_i = v.gather(2, index[:, None].expand(-1, v.shape[1], -1))
    s_i = s.gather(1, index)[:, None]
    noise = 8 * torch.finfo(s.dtype).eps * s[:, :1, None].square()
    w = x.transpose(1, 2) @ (x @ v_i)
    dw = w - w.detach()
    along = v.transpose(1, 2) @ dw  # (B, r, k)
    outside = (dw - v @ along) * _inverse(s_i.square(), noise)
    return v_i + v @ (along * _inverse((s_i - s[..., None]) * (s_i + s[..., None]), noise)) + outside


def _inverse(x: Tensor, noise: Tensor) -> Tensor:
    regular = x.abs() > noise
    return torch.where(regular, 1 / torch.where(regular, x, torch.ones_like(x)), torch.zeros_like(x))

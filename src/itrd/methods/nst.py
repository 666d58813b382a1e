"""NST: the distribution of the student's channel patterns is the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from itrd.methods.base import Batch, Method
from itrd.methods.functional import normalize_rows, pool_to_match
from itrd.models.base import Outputs


class NST(Method):
    """Neuron Selectivity Transfer (Huang, Wang, 2017, arXiv 1707.01219).

    Each channel of a map is a unit vector u_c over the H W positions. With the kernel k(a, b) = (a.b)^2, the
    squared maximum mean discrepancy between the channels of student and teacher,

        L = sum over pairs of maps of mean_b [ mean_cc' k(u_t,c, u_t,c') + mean_cc' k(u_s,c, u_s,c')
                                               - 2 mean_cc' k(u_s,c, u_t,c') ].

    C_s and C_t may differ. Where the sizes of a pair differ, the larger map is average-pooled first. If one
    network has more maps than the other, its deepest ones are left over, as in the published code.

    Computed by matrix products, from whichever is smaller: the channels' inner products (C x C), or the
    positions' second moments P = (1/C) sum_c u_c u_c^T (H W x H W), for which L = ||P_s - P_t||_F^2, the
    same number. The published code materialises a tensor (B, C, C', H W).

    Deviation of the published benchmark code, which this follows, from the paper: a wide ResNet's maps are raw sums,
    before the next block's batch norm and activation. Otherwise none of substance; polynomial kernel of degree 2
    with offset 0, the paper's best variant.

    Degenerate input: a channel that is zero (norm below 1e-12) is u = 0 with zero gradient.
    """

    name = "nst"
    title = "NST"
    paper = "Huang, Wang, 2017, arXiv 1707.01219"
    formula = "L = sum_i MMD^2_k({u_s,c}, {u_t,c}),  k(a, b) = (a.b)^2,  u_c = channel / ||channel||"
    reads = frozenset({"maps"})
    relates_samples = False
    weight = 50.0

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"nst": scalar}`` for maps (B, C_i, H_i, W_i)."""
        losses = [nst_loss(*pair) for pair in zip(student.maps, teacher.maps, strict=False)]
        return {"nst": torch.stack(losses).sum()}


def nst_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """L of one pair of maps; scalar."""
    f_s, f_t = pool_to_match(f_s, f_t)
    u_s, u_t = normalize_rows(f_s.flatten(2)), normalize_rows(f_t.flatten(2))
    positions = u_s.shape[2]
    if positions <= max(u_s.shape[1], u_t.shape[1]):
        difference = _second_moments(u_s) - _second_moments(u_t)
        return difference.square().sum(dim=(1, 2)).mean()
    return _mean_kernel(u_t, u_t) + _mean_kernel(u_s, u_s) - 2 * _mean_kernel(u_s, u_t)


def _second_moments(u: Tensor) -> Tensor:
    return torch.bmm(u.transpose(1, 2), u) / u.shape[1]


def _mean_kernel(u: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(u, v.transpose(1, 2)).square().mean()

"""AT: the student attends to the places that the teacher attends to."""

from __future__ import annotations

import torch
from torch import Tensor

from itrd.methods.base import Batch, Method
from itrd.methods.functional import normalize_rows, pool_to_match, tame
from itrd.models.base import Outputs


class Attention(Method):
    """Paying More Attention to Attention (Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928).

    The attention of a map F (B, C, H, W) is, per sample, a unit vector over positions,

        Q(F) = v / ||v||,  v_hw = mean_c F_chw^2,
        L = sum over pairs of maps of mean_{b,h,w} (Q(F_s) - Q(F_t))^2.

    Where the sizes of a pair differ, the larger map is average-pooled first. If one network has more maps
    than the other, its deepest ones are left over, as in the published code.

    Where the published benchmark code, which this follows, differs from the paper:
        * the paper takes the norm of the difference, with weight beta / 2; the code takes the mean of
          squares, so a map of H x W positions counts 1 / (H W);
        * mean instead of sum over channels, which the normalisation cancels;
        * a wide ResNet's maps are raw sums, before the next block's batch norm and activation.

    Degenerate input: a map that is zero (||v|| < 1e-12) has attention 0 with zero gradient.
    """

    name = "attention"
    title = "AT"
    paper = "Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928"
    formula = "L = sum_i mean (Q(F_s,i) - Q(F_t,i))^2,  Q(F) = vec(mean_c F_c^2) / ||.||"
    reads = frozenset({"maps"})
    relates_samples = False
    weight = 1000.0

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"attention": scalar}`` for maps (B, C_i, H_i, W_i)."""
        losses = [attention_loss(*pair) for pair in zip(student.maps, teacher.maps, strict=False)]
        return {"attention": torch.stack(losses).sum()}


def attention(f: Tensor) -> Tensor:
    """Q of a map (B, C, H, W): unit vectors (B, H W)."""
    return normalize_rows(tame(f).square().mean(dim=1).flatten(1))


def attention_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """L of one pair of maps; scalar."""
    f_s, f_t = pool_to_match(f_s, f_t)
    return (attention(f_s) - attention(f_t)).square().mean()

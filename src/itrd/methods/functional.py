"""Small pieces of mathematics that several methods share, finite wherever their input is finite."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize_rows(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Divide each row (last axis) by its Euclidean norm, x / max(||x||, eps).

    Where the norm is regular this is the plain formula, bit for bit. A row of norm below ``eps`` becomes
    zero with zero gradient (the plain formula multiplies its gradient by 1/eps = 1e12), and a row whose
    squared norm overflows is scaled by its largest entry first.
    """
    norm = x.norm(dim=-1, keepdim=True)
    overflow = ~torch.isfinite(norm)
    scale = torch.where(overflow, x.detach().abs().amax(dim=-1, keepdim=True), torch.ones_like(norm))
    x = x / scale
    norm = x.norm(dim=-1, keepdim=True)
    regular = norm > eps
    return torch.where(regular, x, torch.zeros_like(x)) / torch.where(regular, norm, torch.ones_like(norm))


def standardize_columns(x: Tensor) -> Tensor:
    """Standardise each column over the batch, (x - mean) / std, with the unbiased std (divisor B - 1).

    A column without variation has no standard form: where std is not above the rounding noise of the
    column (8 machine epsilons of its largest entry), is not finite, or where B = 1, the result is zero with
    zero gradient. Everywhere else it is the plain formula, bit for bit. A batch of two standardises to
    +-1/sqrt(2) whatever its values, so its gradient is exactly zero, where the plain formula leaves
    rounding noise divided by std.
    """
    if x.shape[0] < 2:
        return x * 0.0
    std = x.std(dim=0)
    noise = 8 * torch.finfo(x.dtype).eps * x.detach().abs().amax(dim=0)
    regular = (std > noise) & torch.isfinite(std)
    z = (x - x.mean(dim=0)) / torch.where(regular, std, torch.ones_like(std))
    z = torch.where(regular, z, torch.zeros_like(z))
    return z.detach() + x * 0.0 if x.shape[0] == 2 else z

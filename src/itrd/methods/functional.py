"""Small pieces of mathematics that several methods share, finite wherever their input is finite."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def rounding_noise(x: Tensor, dim: int) -> Tensor:
    """8 machine epsilons of the largest entry along ``dim``, which a mean may be off by; a deviation below is none."""
    return 8 * torch.finfo(x.dtype).eps * x.detach().abs().amax(dim=dim, keepdim=True)


def standardize_columns(x: Tensor) -> Tensor:
    """Standardise each column over the batch, (x - mean) / std, with the unbiased std (divisor B - 1).

    A column without variation has no standard form: where std is not above the rounding noise of the
    column (:func:`rounding_noise`), is not finite, or where B = 1, the result is zero with
    zero gradient. Everywhere else it is the plain formula, bit for bit. A batch of two standardises to
    +-1/sqrt(2) whatever its values, so its gradient is exactly zero, where the plain formula leaves
    rounding noise divided by std.
    """
    if x.shape[0] < 2:
        return x * 0.0
    centred = x - x.mean(dim=0)  # before std: gradients are summed in the plain formula's order
    std = x.std(dim=0)
    regular = (std > rounding_noise(x, 0)[0]) & torch.isfinite(std)
    z = centred / torch.where(regular, std, torch.ones_like(std))
    z = torch.where(regular, z, torch.zeros_like(z))
    return z.detach() + x * 0.0 if x.shape[0] == 2 else z


def tame(x: Tensor, *, whole: bool = False, limit: float = 1e9) -> Tensor:
    """Divide each sample by its largest entry where that exceeds ``limit``; leave all others as they are.

    For quantities that do not depend on the scale of a sample (with ``whole``: of the batch, which is then
    divided as one) but whose squares or products would overflow.
    """
    largest = x.detach().abs().amax() if whole else x.detach().abs().flatten(1).amax(dim=1)
    largest = torch.where(largest > limit, largest, torch.ones_like(largest))
    return x / largest.reshape(-1, *[1] * (x.ndim - 1))


def mean_square(x: Tensor) -> Tensor:
    """Mean of x^2 over all elements, dividing before the sum so that a sum of large squares does not overflow."""
    return (x / x.numel() ** 0.5).square().sum()


def pool_to_match(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two maps (B, C, H, W) to one size: adaptive average pooling to the smaller height and the smaller width.

    For square maps this is the pooling of the benchmark code of CRD, which looks at heights alone.
    """
    size = (min(f_s.shape[2], f_t.shape[2]), min(f_s.shape[3], f_t.shape[3]))
    return tuple(f if f.shape[2:] == size else F.adaptive_avg_pool2d(f, size) for f in (f_s, f_t))  # type: ignore[return-value]

"""The binary convolution of ReCU (arXiv 2103.12369): forward pass, surrogate gradients, schedule of the clamp.

Signs are those of :func:`torch.sign`, as in the published code: the sign of zero is zero, so a weight, an activation
or a padded pixel that is exactly zero contributes nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAU_START, TAU_END = 0.85, 0.99
_EPS = 1e-5  # beside both variances, as in batch norm
_LAPLACE_STD = 2 * math.sqrt(2)  # of a Laplace distribution of scale 2


def tau_at(epoch: int, epochs: int) -> float:
    """Quantile of an epoch counted from 0: ``A exp(e / E) + B``, 0.85 at e = 0 and 0.99 at e = E.

    Args:
        epoch: e.
        epochs: E, of the whole run.
    """
    slope = (TAU_END - TAU_START) / (math.e - 1)
    return slope * math.exp(epoch / epochs) + TAU_START - slope


class _SignStraightThrough(torch.autograd.Function):
    """Sign whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _SignPolynomial(torch.autograd.Function):
    """Sign of activations, with the gradient that :func:`binary_activation` describes.

    Written out, because a training step on a CPU takes half as long again without: with r = 1 / sqrt(var + eps),
    n = C H W, h = grad max(0, 2 - 2 |x r|) and <h, x> a sum over a sample,

        dL/dx = r h - r^3 <h, x> / (n - 1) (x - mean).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, training: bool) -> Tensor:
        if training:
            mean = x.mean((1, 2, 3), keepdim=True)
            # Not torch.var, which is slow on a CPU.
            variance = (x - mean).square_().sum((1, 2, 3), keepdim=True) / (x[0].numel() - 1)
            ctx.save_for_backward(x, mean, (variance + _EPS).rsqrt())
        else:
            ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, *statistics = ctx.saved_tensors
        if not statistics:
            return x.abs().mul_(-2).add_(2).clamp_min_(0).mul_(grad), None
        mean, scale = statistics
        h = x.abs().mul_(-2 * scale).add_(2).clamp_min_(0).mul_(grad)
        pull = (h * x).sum((1, 2, 3), keepdim=True) * scale.pow(3) / (x[0].numel() - 1)
        return h.mul_(scale).addcmul_(x, -pull).add_(pull * mean), None


def binary_weight(weight: Tensor, tau: Tensor) -> Tensor:
    """Binarise filters (C_out, C_in, k, k) to values in {-1, 0, 1}, with ReCU's gradient.

    Every filter is centred and scaled to the standard deviation 2 sqrt(2) of a Laplace distribution of scale 2
    (unbiased variance); weights outside of the quantiles 1 - tau and tau of a Laplace distribution,

        Q(tau) = -E ln(2 - 2 tau),   E = mean |w| over the layer, without gradient,

    are clamped, which stops their gradient; the sign passes the gradient on unchanged.

    Args:
        weight: latent weights w.
        tau: quantile, a scalar tensor in (0.5, 1).
    """
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    deviation = (centred.var((1, 2, 3), keepdim=True) + _EPS).sqrt()
    scaled = centred / (deviation / _LAPLACE_STD)
    bound = -scaled.detach().abs().mean() * (2 - 2 * tau).log()
    return _SignStraightThrough.apply(scaled.clamp(-bound, bound))


def binary_activation(x: Tensor, training: bool) -> Tensor:
    """Binarise activations (B, C, H, W) to values in {-1, 0, 1}; gradient ``max(0, 2 - 2 |a|)`` with respect to a.

    In training a = x / sqrt(var + 1e-5) with each sample's unbiased variance, through which gradient flows, too: it
    decides how much gradient passes and leaves every sign as it is. In evaluation a = x.
    """
    return _SignPolynomial.apply(x, training)


class BinaryConv2d(nn.Module):
    """3x3 convolution of one-bit activations with one-bit weights, without bias.

    (B, C_in, H, W) -> (B, C_out, H / stride, W / stride): ``conv(sign(a), sign(w)) * alpha``, padded with zeros that
    stay zeros. It is no :class:`torch.nn.Conv2d`, because its latent weights are not what it multiplies by: whoever
    folds, prunes or quantises convolutions must pass it over.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: of the convolution.

    Attributes:
        weight: latent weights (C_out, C_in, 3, 3), real numbers that training moves.
        alpha: scale of each output channel (C_out, 1, 1), initially uniform in [0, 1).
        tau: quantile of :func:`binary_weight`, a buffer that is filled in place once an epoch, so that a recorded
            CUDA graph stays valid. It follows from the epoch and is no part of the state.
    """

    tau: Tensor

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 3, 3))
        self.alpha = nn.Parameter(torch.rand(c_out, 1, 1))
        self.register_buffer("tau", torch.tensor(TAU_START), persistent=False)
        nn.init.kaiming_normal_(self.weight)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the quantile of an epoch, counted from 1, of a run of ``epochs``."""
        self.tau.fill_(tau_at(epoch - 1, epochs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled convolution (B, C_out, H', W')."""
        return self.convolve(x) * self.alpha

    def convolve(self, x: Tensor) -> Tensor:
        """Return the convolution of the signs (B, C_out, H', W'): whole numbers of at most 9 C_in."""
        signs = binary_activation(x, self.training)
        return F.conv2d(signs, binary_weight(self.weight, self.tau), stride=self.stride, padding=1)

    def extra_repr(self) -> str:
        """Return the sizes, as torch's layers show theirs."""
        c_out, c_in = self.weight.shape[:2]
        return f"{c_in}, {c_out}, stride={self.stride}"


def init_convolutions(net: nn.Module) -> None:
    """Give the full-precision convolutions weights N(0, 2 / fan_in) (He et al., 2015), as the binary ones have."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


def pooled_shortcut(x: Tensor, c_out: int) -> Tensor:
    """Shortcut where the shape changes: (B, C, H, W) -> (B, C_out, H / 2, W / 2).

    2x2 average pooling; the new channels are zeros, half of them before the old ones and half after.
    """
    new = (c_out - x.shape[1]) // 2
    return F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, new, new))

"""Small pieces that several architectures share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpacedDepthwise(nn.Conv2d):
    """A depthwise convolution with a stride and zeros around the image, trained fast in bf16 on a CPU, too.

    There, oneDNN computes the gradient of its input many times slower than that of the same convolution without a
    stride (torch 2.13, AVX-512; docs/performance.md has figures; in fp32 it does not). In training it is therefore
    computed at every place, and the places between are dropped: the same function, with four times the few
    multiplications at stride 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H', W')."""
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if not self.training or x.device.type != "cpu" or precision != torch.bfloat16:
            return super().forward(x)
        everywhere = F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        # Pooling a window of one drops the others in the memory's own order, which slicing would not keep.
        return F.avg_pool2d(everywhere, 1, self.stride)


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Build a convolution without bias that keeps the size at stride 1."""
    kind = SpacedDepthwise if groups == c_in == c_out and stride > 1 else nn.Conv2d
    return kind(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def init_fan_out(net: nn.Module) -> None:
    """Give all convolutions weights N(0, 2 / (k^2 C_out)) and zero biases (He et al., 2015, fan-out).

    C_out is the full output width, also for grouped and depthwise convolutions. Batch norms keep
    their default (weight 1, bias 0).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_small_classifier(linear: nn.Linear) -> None:
    """Give a classifier weights N(0, 0.01^2) and zero bias."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)


def pool_window(x: Tensor, size: int) -> Tensor:
    """Average maps (B, C, size, size) to (B, C).

    The original networks pool a fixed window that fits 32x32 images. On larger images that either
    fails in the classifier, ignores the border, or silently returns more rows than images; here any
    other size is an error.
    """
    height, width = x.shape[-2:]
    if height != size or width != size:
        raise ValueError(
            f"this network takes 32x32 images: its last map must be {size}x{size}, but it is {height}x{width}"
        )
    return F.avg_pool2d(x, size).flatten(1)


def batch_norms(net: nn.Module, names: Iterable[str]) -> list[nn.BatchNorm2d]:
    """Return the batch norms of the given dotted names."""
    return [cast(nn.BatchNorm2d, net.get_submodule(name)) for name in names]


class Stage(nn.Sequential):
    """Units in a row whose last one can leave out its final ReLU.

    Each unit is a module ``unit(x, relu=True)``. With ``relu=False`` the stage returns the
    pre-activation of its last unit, and the caller applies the ReLU itself.
    """

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        *inner, last = self
        for unit in inner:
            x = unit(x)
        return last(x, relu=relu)

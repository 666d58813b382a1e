"""Wide residual networks wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2 (pre-activation, no dropout).

Zagoruyko, Komodakis: Wide residual networks, BMVC 2016.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import conv, init_fan_out, pool_window
from itrd.models.base import FeatureNet


class Unit(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, twice, and a shortcut.

    (B, C_in, H, W) -> (B, C_out, H / stride, W / stride), a raw sum without batch norm or ReLU.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv(c_in, c_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = conv(c_out, c_out, 3)
        # Channels alone decide; no unit of these networks has a stride without a change of width.
        self.convShortcut = None if c_in == c_out else conv(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the raw residual sum."""
        activated = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        out = self.conv2(out)
        # The projection sees the activated input, the identity the raw one.
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class Block(nn.Module):
    """n units; the attribute ``layer`` is part of the published state-dict keys."""

    def __init__(self, c_in: int, c_out: int, units: int, stride: int) -> None:
        super().__init__()
        inner = (Unit(c_out, c_out, 1) for _ in range(units - 1))
        self.layer = nn.Sequential(Unit(c_in, c_out, stride), *inner)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        return self.layer(x)

    def first_bn(self) -> nn.BatchNorm2d:
        """Return the batch norm that the output of the previous block enters."""
        return cast(Unit, self.layer[0]).bn1


class WideResNet(FeatureNet):
    """Wide ResNet of depth 6n + 4 with n units in each of three blocks.

    Args:
        num_classes: number of classes K.
        depth: 6n + 4.
        widening: factor k of the widths 16k, 32k, 64k.

    Shapes for 32x32 images: stem (B, 16, 32, 32), the raw output of the first convolution; maps
    (B, 16k, 32, 32), (B, 32k, 16, 16), (B, 64k, 8, 8); embedding (B, 64k).
    """

    def __init__(self, num_classes: int, depth: int, widening: int) -> None:
        super().__init__()
        units, rest = divmod(depth - 4, 6)
        if rest or units < 1:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {depth}")
        w1, w2, w3 = 16 * widening, 32 * widening, 64 * widening
        self.num_classes = num_classes
        self.conv1 = conv(3, 16, 3)
        self.block1 = Block(16, w1, units, stride=1)
        self.block2 = Block(w1, w2, units, stride=2)
        self.block3 = Block(w2, w3, units, stride=2)
        self.bn1 = nn.BatchNorm2d(w3)
        self.fc = nn.Linear(w3, num_classes)
        init_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Raw stem, raw block outputs (with ``preact`` batch-normalised), pooled vector.

        With ``preact`` in train mode the three batch norms of :meth:`get_bn_before_relu` run twice on
        the same tensor and so update their running statistics twice. That is how the published
        students were trained; logits and gradients of the step are not affected, evaluation is.
        """
        stem = self.conv1(images)
        f1 = self.block1(stem)
        f2 = self.block2(f1)
        f3 = self.block3(f2)
        embedding = pool_window(F.relu(self.bn1(f3), inplace=True), 8)
        if preact:
            bn_1, bn_2, bn_3 = self.get_bn_before_relu()
            return stem, (bn_1(f1), bn_2(f2), bn_3(f3)), embedding
        return stem, (f1, f2, f3), embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 64k) to logits (B, K)."""
        return self.fc(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return stem and blocks; the final batch norm belongs to the head."""
        return nn.ModuleList([self.conv1, self.block1, self.block2, self.block3])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the batch norms that the three block outputs enter."""
        return [self.block2.first_bn(), self.block3.first_bn(), self.bn1]

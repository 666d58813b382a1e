"""Binary ResNets after ReCU: resnet18_1w1a and resnet20_1w1a.

Stem and classifier are in full precision, every other convolution is binary. A shortcut carries real numbers: 2x2
average pooling and zero channels where it changes shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import Stage, conv, pool_window
from itrd.models.base import FeatureNet
from itrd.models.binary.layers import BinaryConv2d, init_convolutions, pooled_shortcut


class SingleShortcutBlock(nn.Module):
    """Two binary convolutions with one shortcut around both: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = BinaryConv2d(c_in, c_out, stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = BinaryConv2d(c_out, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self._c_out = c_out if stride != 1 else None

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """Return the block output; without ``relu`` the sum before its final hardtanh."""
        out = F.hardtanh(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + _shortcut(x, self._c_out)
        return F.hardtanh(out) if relu else out


class DoubleShortcutBlock(SingleShortcutBlock):
    """The same with a shortcut around each of the two convolutions and a hardtanh after each sum."""

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """Return the block output; without ``relu`` the second sum before its hardtanh."""
        x = F.hardtanh(self.bn1(self.conv1(x)) + _shortcut(x, self._c_out))
        out = self.bn2(self.conv2(x)) + x
        return F.hardtanh(out) if relu else out


def _shortcut(x: Tensor, c_out: int | None) -> Tensor:
    return x if c_out is None else pooled_shortcut(x, c_out)


class BinaryResNet(FeatureNet):
    """Stages of residual blocks of binary convolutions; every stage but the first halves the image.

    Args:
        num_classes: number of classes K.
        widths: channels of the stages; the stem has those of the first.
        blocks: blocks in each stage.
        shortcuts: around each convolution (2 a block, and a hardtanh after the stem) or each block (1, and none).

    Shapes for 32x32 images: stem (B, w_1, 32, 32); maps (B, w_i, 32 / 2^(i-1), ...); embedding (B, w_last). The
    embedding is the pooled last map after its one-dimensional batch norm: what enters the classifier. With ``preact``
    a map is the last sum of its stage, before the hardtanh, whose values are not bounded by 1.
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int], blocks: Sequence[int], shortcuts: int = 1
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self._stem_hardtanh = shortcuts == 2
        self._last_side = 32 >> (len(widths) - 1)
        self.conv1 = conv(3, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        block = DoubleShortcutBlock if shortcuts == 2 else SingleShortcutBlock
        stages: list[Stage] = []
        c_in = widths[0]
        for width, depth in zip(widths, blocks, strict=True):
            first = block(c_in, width, stride=1 if not stages else 2)
            stages.append(Stage(first, *(block(width, width, stride=1) for _ in range(depth - 1))))
            c_in = width
        self.layers = nn.ModuleList(stages)
        self.bn2 = nn.BatchNorm1d(c_in)
        self.fc = nn.Linear(c_in, num_classes)
        init_convolutions(self)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem, stage outputs (with ``preact`` the last sum of each stage), pooled and normalised vector."""
        x = self.bn1(self.conv1(images))
        stem = x = F.hardtanh(x) if self._stem_hardtanh else x
        maps = []
        for stage in self.layers:
            x = stage(x, relu=not preact)
            maps.append(x)
            if preact:
                x = F.hardtanh(x)
        return stem, tuple(maps), self.bn2(pool_window(x, self._last_side))

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, D) to logits (B, K)."""
        return self.fc(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return everything below the classifier."""
        return nn.ModuleList([self.conv1, self.bn1, *self.layers, self.bn2])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Raise: there is no ReLU, and OFD's margins are those of one.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a binary network has hardtanh instead of ReLU, so it has no margins")

"""ShuffleNet with three groups for 32x32 images.

Zhang, Zhou, Lin, Sun: ShuffleNet: an extremely efficient convolutional neural network for mobile
devices, CVPR 2018. Unlike there, a ReLU follows the depthwise convolution, and the stem is a 1x1
convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import Stage, conv, pool_window
from itrd.models.base import FeatureNet

_GROUPS = 3
_STEM = 24


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    Stride 1 adds the input: (B, C, H, W) -> (B, C, H, W). Stride 2 concatenates the average-pooled
    input instead: (B, C_in, H, W) -> (B, C_out, H / 2, W / 2), of which C_in channels are pooled.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        branch = c_out if stride == 1 else c_out - c_in
        middle = branch // 4
        # The stem has too few channels to be worth grouping.
        self.first_groups = 1 if c_in == _STEM else _GROUPS
        self.conv1 = conv(c_in, middle, 1, groups=self.first_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv(middle, branch, 1, groups=_GROUPS)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """Return the unit output; without ``relu`` before its final ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.first_groups > 1:
            out = F.channel_shuffle(out, self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            out = out + x
        else:
            pooled = F.avg_pool2d(x, 3, stride=2, padding=1)  # the zeros of the border are counted
            out = torch.cat([out, pooled], dim=1)
        return F.relu(out, inplace=True) if relu else out


class ShuffleNetV1(FeatureNet):
    """ShuffleNet, 3 groups, width 1.

    Shapes for 32x32 images: stem (B, 24, 32, 32); maps (B, 240, 16, 16), (B, 480, 8, 8),
    (B, 960, 4, 4); embedding (B, 960). All weights start from the framework's default.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv(3, _STEM, 1)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 240, units=4)
        self.layer2 = _stage(240, 480, units=8)
        self.layer3 = _stage(480, 960, units=4)
        self.linear = nn.Linear(960, num_classes)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem after ReLU, stage outputs (with ``preact`` before their ReLU), pooled vector."""
        stem = x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x, relu=not preact)
            maps.append(x)
            if preact:
                x = F.relu(x)
        return stem, tuple(maps), pool_window(x, 4)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 960) to logits (B, K)."""
        return self.linear(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return everything below the classifier."""
        return nn.ModuleList([self.conv1, self.bn1, self.layer1, self.layer2, self.layer3])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Not available: part of each pre-activation is a sum or a pooled map, not a batch norm output."""
        raise NotImplementedError("ShuffleV1 has no batch norms before the ReLU of its maps")


def _stage(c_in: int, c_out: int, units: int) -> Stage:
    return Stage(Unit(c_in, c_out, 2), *(Unit(c_out, c_out, 1) for _ in range(units - 1)))

"""ShuffleNet V2 of size 1 for 32x32 images.

Ma, Zhang, Zheng, Sun: ShuffleNet V2: practical guidelines for efficient CNN architecture design,
ECCV 2018. The stem is a 1x1 convolution and there is no max pooling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import Stage, conv, pool_window
from itrd.models.base import FeatureNet

_STEM = 24
_HEAD = 1024


class DownUnit(nn.Module):
    """Two branches of stride 2, shuffled together: (B, C_in, H, W) -> (B, C_out, H / 2, W / 2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        # Left branch: depthwise, then 1x1.
        self.conv1 = conv(c_in, c_in, 3, stride=2, groups=c_in)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = conv(c_in, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        # Right branch: 1x1, depthwise, 1x1.
        self.conv3 = conv(c_in, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return both branches, rectified and shuffled."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return F.channel_shuffle(torch.cat([left, right], dim=1), 2)


class BasicUnit(nn.Module):
    """Passes on the first half of the channels, transforms the second: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """Return the unit output; without ``relu`` both halves side by side, neither rectified nor shuffled.

        The first half is then already rectified, because it comes from the unit before.
        """
        kept, x = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        return _merge(kept, F.relu(out, inplace=True)) if relu else torch.cat([kept, out], dim=1)


class ShuffleNetV2(FeatureNet):
    """ShuffleNet V2, size 1.

    Shapes for 32x32 images: stem (B, 24, 32, 32); maps (B, 116, 16, 16), (B, 232, 8, 8),
    (B, 464, 4, 4); embedding (B, 1024), which is not the pooled last map: a 1x1 convolution lies
    between. With ``preact`` the channels of a map are in another order than without, since the
    pre-activation is taken before the shuffle. All weights start from the framework's default.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv(3, _STEM, 1)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 116, basic_units=3)
        self.layer2 = _stage(116, 232, basic_units=7)
        self.layer3 = _stage(232, 464, basic_units=3)
        self.conv2 = conv(464, _HEAD, 1)
        self.bn2 = nn.BatchNorm2d(_HEAD)
        self.linear = nn.Linear(_HEAD, num_classes)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem after ReLU, stage outputs (with ``preact`` before last ReLU and shuffle), pooled vector."""
        stem = x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x, relu=not preact)
            maps.append(x)
            if preact:
                kept, out = x.chunk(2, dim=1)
                x = _merge(kept, F.relu(out))
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return stem, tuple(maps), pool_window(x, 4)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 1024) to logits (B, K)."""
        return self.linear(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return stem and stages; the last 1x1 convolution belongs to the head."""
        return nn.ModuleList([self.conv1, self.bn1, self.layer1, self.layer2, self.layer3])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Not available: half of each pre-activation does not come from a batch norm."""
        raise NotImplementedError("ShuffleV2 has no batch norms before the ReLU of its maps")


def _merge(kept: Tensor, transformed: Tensor) -> Tensor:
    """Put two rectified halves (B, C / 2, H, W) together and shuffle them."""
    return F.channel_shuffle(torch.cat([kept, transformed], dim=1), 2)


def _stage(c_in: int, c_out: int, basic_units: int) -> Stage:
    return Stage(DownUnit(c_in, c_out), *(BasicUnit(c_out) for _ in range(basic_units)))

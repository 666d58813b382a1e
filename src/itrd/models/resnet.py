"""ResNets for 32x32 images: resnet8 ... resnet110 and the four times wider resnet8x4, resnet32x4.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016, section 4.2, with
1x1 convolutions where a shortcut changes shape.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import Stage, batch_norms, conv, init_fan_out, pool_window
from itrd.models.base import FeatureNet


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(c_in, c_out, 3, stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = conv(c_out, c_out, 3)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """Return the block output; without ``relu`` the sum before its final ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out, inplace=True) if relu else out


class ResNet(FeatureNet):
    """CIFAR ResNet of depth 6n + 2 with n blocks in each of three stages.

    Args:
        num_classes: number of classes K.
        depth: 6n + 2.
        widths: channels of the stem and of the three stages.

    Shapes for 32x32 images and default widths: stem (B, 16, 32, 32); maps (B, 16, 32, 32),
    (B, 32, 16, 16), (B, 64, 8, 8); embedding (B, 64).
    """

    def __init__(
        self, num_classes: int, depth: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        self.num_classes = num_classes
        self.conv1 = conv(3, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)  # a module because get_feat_modules lists it
        self.layer1 = basic_stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = basic_stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = basic_stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_fan_out(self)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem after ReLU, stage outputs (with ``preact`` the last sum of each stage), pooled vector."""
        stem = x = self.relu(self.bn1(self.conv1(images)))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x, relu=not preact)
            maps.append(x)
            if preact:
                x = F.relu(x)
        return stem, tuple(maps), pool_window(x, 8)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, D) to logits (B, K)."""
        return self.fc(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return everything below the classifier."""
        return nn.ModuleList([self.conv1, self.bn1, self.relu, self.layer1, self.layer2, self.layer3])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the second batch norm of the last block of each stage."""
        last = len(self.layer1) - 1
        return batch_norms(self, (f"layer{stage}.{last}.bn2" for stage in (1, 2, 3)))


def basic_stage(c_in: int, c_out: int, blocks: int, stride: int) -> Stage:
    """Build ``blocks`` basic blocks in a row, the first of which has the stride and changes the width."""
    first = BasicBlock(c_in, c_out, stride)
    return Stage(first, *(BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1)))

"""ResNet50 for 32x32 images: the bottleneck ImageNet network with a 3x3 stem of stride 1 and no max pooling.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import Stage, batch_norms, conv, init_fan_out
from itrd.models.base import FeatureNet

_BLOCKS = (3, 4, 6, 3)
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolution and a shortcut.

    (B, C_in, H, W) -> (B, 4 width, H / stride, W / stride).
    """

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = _EXPANSION * width
        self.conv1 = conv(c_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, c_out, 1)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """Return the block output; without ``relu`` the sum before its final ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out = out + (x if self.shortcut is None else self.shortcut(x))
        return F.relu(out, inplace=True) if relu else out


class ResNet50(FeatureNet):
    """Bottleneck ResNet with 3, 4, 6, 3 blocks.

    Shapes for 32x32 images: stem (B, 64, 32, 32); maps (B, 256, 32, 32), (B, 512, 16, 16),
    (B, 1024, 8, 8), (B, 2048, 4, 4); embedding (B, 2048). Other image sizes work too.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, _BLOCKS[0], stride=1)
        self.layer2 = _stage(256, 128, _BLOCKS[1], stride=2)
        self.layer3 = _stage(512, 256, _BLOCKS[2], stride=2)
        self.layer4 = _stage(1024, 512, _BLOCKS[3], stride=2)
        self.linear = nn.Linear(2048, num_classes)
        init_fan_out(self)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem after ReLU, stage outputs (with ``preact`` the last sum of each stage), pooled vector."""
        stem = x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x, relu=not preact)
            maps.append(x)
            if preact:
                x = F.relu(x)
        return stem, tuple(maps), F.adaptive_avg_pool2d(x, 1).flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 2048) to logits (B, K)."""
        return self.linear(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return everything below the classifier."""
        return nn.ModuleList([self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the third batch norm of the last block of each stage."""
        return batch_norms(self, (f"layer{i}.{n - 1}.bn3" for i, n in enumerate(_BLOCKS, start=1)))


def _stage(c_in: int, width: int, blocks: int, stride: int) -> Stage:
    first = Bottleneck(c_in, width, stride)
    return Stage(first, *(Bottleneck(_EXPANSION * width, width, 1) for _ in range(blocks - 1)))

"""ResNet-18 for 32x32 images: resnet18_cifar, the full-precision teacher of the binary networks.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016, with a 3x3 stem of stride 1 and without
max pooling, so that the first stage sees 32x32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import batch_norms, conv, init_fan_out, pool_window
from itrd.models.base import FeatureNet
from itrd.models.resnet import basic_stage

_WIDTHS = (64, 128, 256, 512)


class ResNet18(FeatureNet):
    """Four stages of two basic blocks.

    Args:
        num_classes: number of classes K.

    Shapes for 32x32 images: stem (B, 64, 32, 32); maps (B, 64, 32, 32), (B, 128, 16, 16), (B, 256, 8, 8),
    (B, 512, 4, 4); embedding (B, 512).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv(3, _WIDTHS[0], 3)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = basic_stage(_WIDTHS[0], _WIDTHS[0], blocks=2, stride=1)
        self.layer2 = basic_stage(_WIDTHS[0], _WIDTHS[1], blocks=2, stride=2)
        self.layer3 = basic_stage(_WIDTHS[1], _WIDTHS[2], blocks=2, stride=2)
        self.layer4 = basic_stage(_WIDTHS[2], _WIDTHS[3], blocks=2, stride=2)
        self.fc = nn.Linear(_WIDTHS[3], num_classes)
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
        return stem, tuple(maps), pool_window(x, 4)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 512) to logits (B, K)."""
        return self.fc(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return everything below the classifier."""
        return nn.ModuleList([self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the second batch norm of the last block of each stage."""
        return batch_norms(self, (f"layer{stage}.1.bn2" for stage in (1, 2, 3, 4)))

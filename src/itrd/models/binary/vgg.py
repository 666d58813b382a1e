"""The binary VGG-small: vgg_small_1w1a."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import conv
from itrd.models.base import FeatureNet
from itrd.models.binary.layers import BinaryConv2d, init_convolutions


class BinaryVGGSmall(FeatureNet):
    """A full-precision stem, five binary convolutions and one full-precision linear layer.

    Args:
        num_classes: number of classes K.

    Each binary convolution is followed by 2x2 max pooling (the first, third and fifth), batch norm and hardtanh.
    Shapes for 32x32 images: stem (B, 128, 32, 32); maps (B, 128, 16, 16), (B, 256, 8, 8), (B, 512, 4, 4);
    embedding (B, 8192), the last map row by row, which is what enters the classifier: nothing is averaged. With
    ``preact`` a map is the output of its batch norm, before the hardtanh.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv0 = conv(3, 128, 3)
        self.bn0 = nn.BatchNorm2d(128)
        self.conv1, self.bn1 = BinaryConv2d(128, 128), nn.BatchNorm2d(128)
        self.conv2, self.bn2 = BinaryConv2d(128, 256), nn.BatchNorm2d(256)
        self.conv3, self.bn3 = BinaryConv2d(256, 256), nn.BatchNorm2d(256)
        self.conv4, self.bn4 = BinaryConv2d(256, 512), nn.BatchNorm2d(512)
        self.conv5, self.bn5 = BinaryConv2d(512, 512), nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 4 * 4, num_classes)
        init_convolutions(self)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem after hardtanh, outputs behind each pooling (with ``preact`` before hardtanh), flat last map."""
        if images.shape[-2:] != (32, 32):
            raise ValueError(f"this network takes 32x32 images, not {images.shape[-2]}x{images.shape[-1]}")
        stem = F.hardtanh(self.bn0(self.conv0(images)))
        sums = [self.bn1(F.max_pool2d(self.conv1(stem), 2))]
        x = F.hardtanh(self.bn2(self.conv2(F.hardtanh(sums[0]))))
        sums.append(self.bn3(F.max_pool2d(self.conv3(x), 2)))
        x = F.hardtanh(self.bn4(self.conv4(F.hardtanh(sums[1]))))
        sums.append(self.bn5(F.max_pool2d(self.conv5(x), 2)))
        maps = sums if preact else [F.hardtanh(value) for value in sums]
        return stem, tuple(maps), F.hardtanh(sums[2]).flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 8192) to logits (B, K)."""
        return self.fc(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return everything below the classifier."""
        return nn.ModuleList(module for name, module in self.named_children() if name != "fc")

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Raise: there is no ReLU, and OFD's margins are those of one.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a binary network has hardtanh instead of ReLU, so it has no margins")

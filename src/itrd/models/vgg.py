"""VGG networks with batch norm and a single linear classifier: vgg8, vgg11, vgg13, vgg16, vgg19.

Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition, ICLR 2015.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import batch_norms, init_fan_out, init_small_classifier
from itrd.models.base import FeatureNet

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(FeatureNet):
    """Five blocks of 3x3 convolutions with bias, batch norm and ReLU.

    Args:
        num_classes: number of classes K.
        convs: number of convolutions in each of the five blocks.

    Shapes for 32x32 images: stem (B, 64, 32, 32); maps (B, 128, 16, 16), (B, 256, 8, 8),
    (B, 512, 4, 4), (B, 512, 4, 4); embedding (B, 512). Other image sizes work too.
    """

    def __init__(self, num_classes: int, convs: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.convs = convs
        self.block0 = _block(3, _WIDTHS[0], convs[0])
        self.block1 = _block(_WIDTHS[0], _WIDTHS[1], convs[1])
        self.block2 = _block(_WIDTHS[1], _WIDTHS[2], convs[2])
        self.block3 = _block(_WIDTHS[2], _WIDTHS[3], convs[3])
        self.block4 = _block(_WIDTHS[3], _WIDTHS[4], convs[4])
        self.pool0 = nn.MaxPool2d(2)
        self.pool1 = nn.MaxPool2d(2)
        self.pool2 = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2)
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_WIDTHS[4], num_classes)
        init_fan_out(self)
        init_small_classifier(self.classifier)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem after ReLU, outputs of blocks 1 to 4 (with ``preact`` before their ReLU), pooled vector."""
        # The original pools before the last block only for images of height 64 (Tiny ImageNet, STL-10).
        pools = [self.pool0, self.pool1, self.pool2, self.pool3 if images.shape[2] == 64 else None]
        stem = x = F.relu(self.block0(images), inplace=True)
        maps = []
        for pool, block in zip(pools, (self.block1, self.block2, self.block3, self.block4), strict=True):
            before = block(x if pool is None else pool(x))
            x = F.relu(before, inplace=not preact)
            maps.append(before if preact else x)
        return stem, tuple(maps), self.pool4(x).flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 512) to logits (B, K)."""
        return self.classifier(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return blocks and pools in turn."""
        return nn.ModuleList(getattr(self, f"{kind}{i}") for i in range(5) for kind in ("block", "pool"))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the last batch norm of blocks 1 to 4."""
        return batch_norms(self, (f"block{i}.{3 * self.convs[i] - 2}" for i in (1, 2, 3, 4)))


def _block(c_in: int, c_out: int, convs: int) -> nn.Sequential:
    """Build (convolution, batch norm, ReLU) x convs without the last ReLU, which the network applies."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        c_in = c_out
    return nn.Sequential(*layers[:-1])

"""MobileNetV2 of half width for 32x32 images, with plain ReLU instead of ReLU6.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: inverted residuals and linear bottlenecks, CVPR 2018.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from itrd.models._common import batch_norms, conv, init_fan_out, init_small_classifier
from itrd.models.base import FeatureNet

# Expansion, channels (the paper's, times 0.5), units, stride of the first unit.
_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),  # stride 1 instead of the paper's 2, for small images
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
_STEM = 16
_HEAD = 1280  # stays at the paper's width because the multiplier is below 1
_MAPS = (1, 2, 4, 6)  # stages whose outputs are the maps


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection.

    (B, C_in, H, W) -> (B, C_out, H / stride, W / stride). The expansion convolution is there even
    for a factor of 1.
    """

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * c_in
        self.has_identity = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            conv(c_in, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, hidden, 3, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, c_out, 1),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the bottleneck, which is never rectified."""
        return x + self.conv(x) if self.has_identity else self.conv(x)


class MobileNetV2(FeatureNet):
    """MobileNetV2, expansion 6, width 0.5.

    Shapes for 32x32 images: stem (B, 16, 16, 16); maps (B, 12, 16, 16), (B, 16, 8, 8), (B, 48, 4, 4),
    (B, 160, 2, 2); embedding (B, 1280). Smaller images work too, larger ones do not.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = _conv_bn_relu(conv(3, _STEM, 3, stride=2))
        self.blocks = nn.ModuleList()
        c_in = _STEM
        for expansion, c_out, units, stride in _STAGES:
            stage = nn.Sequential(InvertedResidual(c_in, c_out, expansion, stride))
            stage.extend(InvertedResidual(c_out, c_out, expansion, 1) for _ in range(units - 1))
            self.blocks.append(stage)
            c_in = c_out
        self.conv2 = _conv_bn_relu(conv(c_in, _HEAD, 1))
        linear = nn.Linear(_HEAD, num_classes)
        self.classifier = nn.Sequential(linear)
        init_fan_out(self)
        init_small_classifier(linear)

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Stem after ReLU, linear bottlenecks, pooled vector.

        ``preact`` changes nothing: no ReLU follows the maps.
        """
        stem = x = self.conv1(images)
        maps = []
        for stage, block in enumerate(self.blocks):
            x = block(x)
            if stage in _MAPS:
                maps.append(x)
        return stem, tuple(maps), _pool(self.conv2(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, 1280) to logits (B, K)."""
        return self.classifier(embedding)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return stem and bottleneck stages; the last 1x1 convolution belongs to the head."""
        return nn.ModuleList([self.conv1, self.blocks])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the batch norms that make the maps (no ReLU follows them)."""
        return batch_norms(self, (f"blocks.{stage}.{_STAGES[stage][2] - 1}.conv.7" for stage in _MAPS))


def _pool(x: Tensor) -> Tensor:
    """Average the windows of 2x2 of maps (B, C, H, W), incomplete ones included, to (B, C); one must hold the map."""
    pooled = F.avg_pool2d(x, 2, ceil_mode=True)
    if pooled.shape[-2:] != (1, 1):
        raise ValueError(
            "this network takes images of at most 32x32: its last map must be at most 2x2, but it is "
            f"{x.shape[-2]}x{x.shape[-1]}"
        )
    return pooled.flatten(1)


def _conv_bn_relu(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))

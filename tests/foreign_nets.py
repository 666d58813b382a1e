"""Small networks that know nothing of this package, for the tests of taps, hubs and adapters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TwoStages(nn.Module):
    """Stages of 16x16 and 8x8 on images of 32x32."""

    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.late = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.early(x)).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """Patches of 8x8 as tokens after ``prefix`` learned ones, in ``depth`` blocks; ``wrap`` changes the logits."""

    def __init__(self, prefix: int = 2, depth: int = 6, width: int = 8, wrap: object = None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.prefix = nn.Parameter(torch.randn(prefix, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)[0]
        logits = self.head(tokens[:, 0])
        return self.wrap(logits) if callable(self.wrap) else logits


class Block(nn.Module):
    """Mixes every token with the mean; returns a tuple, as the blocks of some libraries do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        return tokens + F.gelu(self.mix(tokens.mean(dim=1, keepdim=True))), None


class ChannelsLast(nn.Module):
    """A stage that gives (B, H, W, C), as Swin's do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, 4)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean(dim=(1, 2)))

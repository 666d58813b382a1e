"""Small folders of images, written by Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn


def pixels(seed: int, height: int = 12, width: int = 12, channels: int = 3) -> np.ndarray:
    """A random image, uint8 (H, W, C)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_classes(
    folder: Path, names: tuple[str, ...] = ("cat", "dog"), each: int = 6, seed: int = 0, side: int = 12
) -> Path:
    """Write ``each`` PNG images of every class."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            image = Image.fromarray(pixels(seed + 1000 * label + i, side, side))
            image.save(folder / name / f"{i:03}.png")
    return folder


def write_photos(root: Path, train: int = 6, test: int = 3, **how: Any) -> Path:
    """Write ``train`` and ``val`` with two classes."""
    write_classes(root / "train", each=train, **how)
    write_classes(root / "val", each=test, seed=500, **how)
    return root


class Plain(nn.Module):
    """A small classifier without batch norm, for images of any size."""

    def __init__(self, classes: int = 2, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.body(x)))

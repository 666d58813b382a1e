"""The handwritten digits that come with scikit-learn, in the shape of CIFAR."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from itrd.data.datasets import ImageDataset, Split

# The first 100 images of every digit are for training: 1,000, which leaves 797 for the test. The
# file is in the order of its writers, so hardly any writer is on both sides.
TRAIN_PER_CLASS = 100
ENLARGED = 4  # 8x8 pixels become 32x32


def load(name: str, root: Path) -> ImageDataset:
    """Return ``digits``; ``root`` is not used, for nothing is read from it."""
    del root
    from sklearn.datasets import load_digits

    content = load_digits()
    small = content.images.astype(np.int64)  # (1797, 8, 8) in 0..16
    labels = content.target.astype(np.int64)
    grey = ((small * 255 + 8) // 16).astype(np.uint8)  # rounded to the nearest of 0..255
    large = grey.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    images = np.ascontiguousarray(np.repeat(large[:, None], 3, axis=1))

    place = np.empty(len(labels), dtype=np.int64)  # of an image among those of its class
    for label in range(10):
        members = labels == label
        place[members] = np.arange(members.sum())
    train = place < TRAIN_PER_CLASS

    scaled = grey[train] / 255.0
    return ImageDataset(
        name=name,
        num_classes=10,
        class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        train=Split(images[train], labels[train]),
        test=Split(images[~train], labels[~train]),
        mean=(round(float(scaled.mean()), 4),) * 3,
        std=(round(float(scaled.std()), 4),) * 3,
        padding=4,
        flip=False,  # a mirrored digit is another sign, or none
    )

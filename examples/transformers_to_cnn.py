"""Distil a vision transformer of transformers into a small convolutional network, with the student alone as control.

The student learns from the teacher's tokens, laid out as feature maps, as well as from its logits. Needs transformers.

python examples/transformers_to_cnn.py --train 1000 --epochs 12 --seeds 5
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import itrd


def teacher_network(classes: int) -> nn.Module:
    """A small ViT for images of 32x32 in patches of 8x8."""
    sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=classes, **sizes))


def student_network(classes: int) -> nn.Module:
    """Three convolutional stages; the last one has the 4x4 positions of the teacher's patches."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers.append(nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def train_teacher(net: nn.Module, data: itrd.data.ImageDataset, epochs: int) -> None:
    """Train on labels with AdamW, which transformers need."""
    images = (torch.tensor(data.train.images) / 255 - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(
        data.std
    ).view(3, 1, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            logits = net(images[rows]).logits
            nn.functional.cross_entropy(logits, torch.tensor(data.train.labels)[rows]).backward()
            optimizer.step()


def main() -> None:
    """Train a teacher, then students with it and alone, from the same weights on the same batches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits", help="digits or cifar10")
    parser.add_argument("--train", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = itrd.load_dataset(arguments.data).subset(arguments.train, arguments.train // 2)
    teacher, student = teacher_network(data.num_classes), student_network(data.num_classes)
    train_teacher(teacher, data, epochs=4 * arguments.epochs)
    print(f"teacher {itrd.evaluate(teacher, data)['top1']:.1f}%")
    blocks = [path for path, module in teacher.named_modules() if type(module).__name__ == "ViTLayer"]
    taps = {"teacher_taps": blocks[-1:], "student_taps": ["2"]}
    print(itrd.describe_taps(teacher, student, torch.randn(2, 3, 32, 32), **taps))
    settings = {"epochs": arguments.epochs, "seeds": arguments.seeds, **taps}
    result = itrd.distill(teacher, student, data, "kd + 0.1*hint(hint_layer=1)", control=True, **settings)
    assert result.comparison is not None
    for run in ("alone", "distilled"):
        found = result.comparison[run]
        print(f"student {run} {found['mean']:.1f}% (n = {found['n']})")
    gap = result.comparison["difference"]
    if gap["low"] is not None:  # one seed has no interval
        print(f"difference {gap['difference']:+.1f}, 95% interval {gap['low']:+.1f} to {gap['high']:+.1f}")


if __name__ == "__main__":
    main()

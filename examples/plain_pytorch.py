"""Distil in a training loop of one's own: two plain networks on scikit-learn's handwritten digits.

python examples/plain_pytorch.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import itrd

EPOCHS = 8


def network(width: int) -> nn.Module:
    """A small classifier; nothing in it knows of distillation."""
    block = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*block, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of the images that the network names rightly."""
    return 100 * (net.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Train a teacher on labels, then a student on labels and teacher."""
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    train_x, test_x, train_y, test_y = train_test_split(images, torch.tensor(targets), random_state=0)
    loader = DataLoader(TensorDataset(train_x, train_y), batch_size=64, shuffle=True)

    teacher, student = network(64), network(8)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for x, y in (batch for _ in range(EPOCHS) for batch in loader):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()

    distiller = itrd.Distiller(student, teacher, "itrd", example=train_x[:4])
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-2)
    for epoch in range(1, EPOCHS + 1):
        distiller.train().start_epoch(epoch, EPOCHS)
        for x, y in loader:
            optimizer.zero_grad()
            distiller(x, y).loss.backward()
            optimizer.step()
    print(
        f"teacher {accuracy(teacher, test_x, test_y):.1f}%, student {accuracy(student, test_x, test_y):.1f}%"
    )


if __name__ == "__main__":
    main()

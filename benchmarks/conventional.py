"""A conventional distillation loop, the yardstick of throughput.py: a fair example of the usual script.

Images are decoded from bytes to PIL and transformed one by one in DataLoader workers, batches are copied to the
device, student and teacher run in eager float32, the loss is read with ``.item()`` at every step. Nothing is slowed
down on purpose: pinned memory, persistent workers, non-blocking copies and cuDNN autotuning are on, as a careful
user would have them, and on a GPU convolutions round float32 to TF32, as is torch's default.
"""

from __future__ import annotations

import random
import time

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset

from itrd.data.datasets import ImageDataset
from itrd.methods import Batch
from itrd.methods.objective import Objective
from itrd.models.base import Outputs


class PILImages(Dataset):
    """Random crop with padding 4, horizontal flip, scaling and normalisation of one image at a time."""

    def __init__(self, data: ImageDataset) -> None:
        self.images = data.train.images.transpose(0, 2, 3, 1)  # (N, H, W, C), as image libraries want it
        self.labels = data.train.labels
        self.mean = torch.tensor(data.mean).view(3, 1, 1)
        self.std = torch.tensor(data.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        image = Image.fromarray(np.ascontiguousarray(self.images[index]))
        width, height = image.size
        image = ImageOps.expand(image, border=4)
        left, top = random.randint(0, 8), random.randint(0, 8)
        image = image.crop((left, top, left + width, top + height))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return tensor.sub_(self.mean).div_(self.std), int(self.labels[index]), index


def train_epochs(
    student: nn.Module,
    teacher: nn.Module,
    objective: Objective,
    data: ImageDataset,
    *,
    epochs: int,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> list[float]:
    """Train and return images per second of each epoch."""
    torch.backends.cudnn.benchmark = True
    loader = DataLoader(
        PILImages(data),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    parameters = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    rates = []
    for _ in range(epochs):
        student.train()
        total, correct, started = 0.0, 0, time.perf_counter()
        for images, labels, indices in loader:
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            with torch.no_grad():
                features_t, logits_t = teacher(images, is_feat=True, preact=True)
            features_s, logits_s = student(images, is_feat=True, preact=True)
            loss, _ = objective(
                Outputs(logits_s, features_s[-1], tuple(features_s[1:-1]), features_s[0]),
                Outputs(logits_t, features_t[-1], tuple(features_t[1:-1]), features_t[0]),
                Batch(labels, indices.to(device)),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += int((logits_s.argmax(1) == labels).sum())
        rates.append(len(data.train) / (time.perf_counter() - started))
    return rates

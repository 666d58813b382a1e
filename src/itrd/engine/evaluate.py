"""Accuracy of a network on a set of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from itrd.data.device import DeviceImages
from itrd.engine.device import autocast
from itrd.engine.metrics import Meter, accuracies
from itrd.methods.base import at_least_float32


@torch.no_grad()
def evaluate(
    net: nn.Module, images: DeviceImages, precision: str = "fp32", batch_size: int = 500
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent and mean cross-entropy (``top1``, ``top5``, ``loss``).

    The network is called plainly on unaugmented images, in eval mode, and left in the mode it was in.
    """
    training = net.training
    net.eval()
    meter = Meter()
    for indices in torch.arange(len(images), device=images.device).split(batch_size):
        labels = images.labels[indices]
        with autocast(images.device, precision):
            logits = net(images.plain(indices))
        logits = at_least_float32(logits)
        values = {**accuracies(logits, labels), "loss": F.cross_entropy(logits, labels)}
        meter.add(values, len(indices))
    net.train(training)
    return meter.read()

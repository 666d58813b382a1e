"""Learning rates: of each epoch, from the settings."""

from __future__ import annotations

import math

from itrd.engine.config import RunConfig


def milestone_rate(base: float, decay: float, milestones: list[int], epoch: int) -> float:
    """Learning rate of an epoch counted from 1: base * decay^(number of milestones before it)."""
    return base * decay ** sum(milestone < epoch for milestone in milestones)


def cosine_rate(base: float, start: int, epochs: int, epoch: int) -> float:
    """Learning rate of an epoch counted from 1: base at ``start``, zero at ``epochs + 1``, which is never trained.

    ``base / 2 (1 + cos(pi (n - start) / (epochs + 1 - start)))`` for epoch n.
    """
    return base / 2 * (1 + math.cos(math.pi * (epoch - start) / (epochs + 1 - start)))


def rate_of(config: RunConfig, epoch: int) -> float:
    """Learning rate of an epoch of the main stage, counted from 1; ``config`` is resolved.

    With W > 0 warm-up epochs, n / W of the schedule's rate in epoch n <= W. Cosine begins in epoch W, at the initial
    rate.
    """
    base, warmup = config.learning_rate, config.warmup_epochs
    assert base is not None
    if config.schedule == "cosine":
        rate = base if epoch < warmup else cosine_rate(base, max(warmup, 1), config.epochs, epoch)
    else:
        assert config.milestones is not None
        rate = milestone_rate(base, config.lr_decay, config.milestones, epoch)
    return rate * min(1, epoch / warmup) if warmup else rate

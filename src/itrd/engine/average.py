"""A moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Exponential moving average of everything in a network's state, ``a <- d a + (1 - d) w`` after every step.

    It begins at the network's weights. Running statistics of batch norms are averaged as weights are; whole numbers
    are copied.

    Args:
        net: the network to follow; an average is one of its kind, in eval mode.
        decay: d, above 0 and below 1.

    Attributes:
        net: the network with the averaged weights.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._decay = decay
        self._followed = [net]  # a list, because the network is not a part of its average

    @torch.no_grad()
    def update(self, taken: Tensor | None = None) -> None:
        """Follow one step of the network; not if ``taken``, a boolean scalar on the device, is False."""
        pairs = zip(self.net.state_dict().values(), self._followed[0].state_dict().values(), strict=True)
        averages, weights = [], []
        # A tensor that two modules share is listed twice, and must move once.
        for average, weight in {average.data_ptr(): (average, weight) for average, weight in pairs}.values():
            if average.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        towards = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(towards, 1 - self._decay if taken is None else (1 - self._decay) * taken)
        torch._foreach_add_(averages, towards)

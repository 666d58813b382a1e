"""Read logits and embedding from any classifier, benchmark network or not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from itrd.errors import UserError
from itrd.models.base import FeatureNet, Outputs

Observer = Callable[[Tensor, bool], Outputs]


def observer(net: nn.Module) -> Observer:
    """Return a function ``(images, preact) -> Outputs`` for a network.

    * A :class:`FeatureNet` offers everything.
    * A network with the calling convention ``net(x, is_feat=True, preact=...) -> (features, logits)`` of the
      existing benchmark scripts likewise.
    * Any other module: the embedding is the input of its last linear layer; there are no maps.

    Raises:
        UserError: another module without a linear layer.
    """
    if isinstance(net, FeatureNet):
        return net.observe
    if "is_feat" in inspect.signature(net.forward).parameters:
        return lambda images, preact: _from_features(*net(images, is_feat=True, preact=preact))
    return _LastLinear(net)


def logits_of(output: Any) -> Tensor:
    """Return the logits (B, K) of what a classifier returned: themselves, or an object that has them.

    Raises:
        UserError: it is neither a tensor nor an object with ``logits``.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"a classifier must return logits, or an object with .logits; this one returned {type(output).__name__}"
        )
    return logits


def _from_features(features: list[Tensor], logits: Tensor) -> Outputs:
    return Outputs(logits, features[-1].flatten(1), tuple(features[1:-1]), features[0])


class _LastLinear:
    """Reads the input of a network's last linear layer, with a hook that lives for one forward pass."""

    def __init__(self, net: nn.Module) -> None:
        linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise UserError(f"{type(net).__name__} has no linear layer, so its embedding cannot be found")
        self._net, self._last = net, linears[-1]

    def __call__(self, images: Tensor, preact: bool) -> Outputs:
        seen: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = logits_of(self._net(images))
        finally:
            hook.remove()
        if not seen:
            raise UserError(f"{type(self._net).__name__} does not use its last linear layer")
        return Outputs(logits, seen[-1].flatten(1))

"""Read logits and embedding from any classifier, benchmark network or not."""

from __future__ import annotations

import inspect
from collections.abc import Callable

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


def _from_features(features: list[Tensor], logits: Tensor) -> Outputs:
    return Outputs(logits, features[-1].flatten(1), tuple(features[1:-1]), features[0])


class _LastLinear:
    def __init__(self, net: nn.Module) -> None:
        linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise UserError(f"{type(net).__name__} has no linear layer, so its embedding cannot be found")
        self._net = net
        self._seen: Tensor | None = None
        linears[-1].register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def __call__(self, images: Tensor, preact: bool) -> Outputs:
        logits = self._net(images)
        embedding, self._seen = self._seen, None
        assert embedding is not None
        return Outputs(logits, embedding.flatten(1))

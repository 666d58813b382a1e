"""Batch norms of a frozen network folded into the convolutions before them: the same function, cheaper.

Which batch norm follows which convolution is seen from one forward pass, not guessed from names. A convolution
whose output is used elsewhere, too, must not be changed; that is not visible from outside, so every fold is
checked by comparing everything the network gives, and left out if anything differs.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from itrd.engine.device import full_float32
from itrd.models.base import FeatureNet, Outputs

_TOLERANCE = 1e-4  # of the largest entry, in float32: folding only changes rounding


@full_float32()
@torch.no_grad()
def fold_batch_norms(net: FeatureNet, images: Tensor) -> FeatureNet:
    """Return a copy of a network in eval mode with every foldable batch norm folded away.

    Args:
        net: the frozen network.
        images: a few normalised images (B, C, H, W) on its device, to see and to check with.
    """
    images = images.float()
    expected = _all(net.eval(), images)
    pairs = _pairs(net, images)
    folded = _folded(net, pairs)
    if _agree(_all(folded, images), expected):
        return folded
    good = [pair for pair in pairs if _agree(_all(_folded(net, [pair]), images), expected)]
    folded = _folded(net, good)
    return folded if _agree(_all(folded, images), expected) else net


def _pairs(net: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Convolution and batch norm where the norm's input is the convolution's output, each used once."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no address is used twice
    used: Counter[str] = Counter()
    found = []
    hooks = []

    def after_conv(name: str, output: Tensor) -> None:
        used[name] += 1
        made[id(output)] = (name, output)

    def before_norm(name: str, value: Tensor) -> None:
        used[name] += 1
        if id(value) in made:
            found.append((made[id(value)][0], name))

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda m, args, out, name=name: after_conv(name, out)))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(
                module.register_forward_pre_hook(lambda m, args, name=name: before_norm(name, args[0]))
            )
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in found if used[conv] == used[norm] == 1]


def _folded(net: FeatureNet, pairs: list[tuple[str, str]]) -> FeatureNet:
    result = copy.deepcopy(net)
    for conv, norm in pairs:
        before, after = result.get_submodule(conv), result.get_submodule(norm)
        assert isinstance(before, nn.Conv2d)
        assert isinstance(after, nn.BatchNorm2d)
        result.set_submodule(conv, fuse_conv_bn_eval(before, after))
        result.set_submodule(norm, nn.Identity())
    return result.requires_grad_(False)


def _all(net: FeatureNet, images: Tensor) -> list[Tensor]:
    seen: list[Outputs] = [net.observe(images, preact) for preact in (False, True)]
    return [t for o in seen for t in (o.logits, o.embedding, *o.maps, o.stem) if t is not None]


def _agree(ours: list[Tensor], expected: list[Tensor]) -> bool:
    return all(
        bool((a - b).abs().max() <= _TOLERANCE * b.abs().max().clamp_min(1e-6))
        for a, b in zip(ours, expected, strict=True)
    )

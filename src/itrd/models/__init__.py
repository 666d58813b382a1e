"""The networks for 32x32 images, by public name: the 22 of the benchmark, and the binary ones with their teacher.

Importing this package does not import torch: the table below is plain data, and the file of an
architecture is loaded when the first of its networks is created. That keeps ``itrd --help`` quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from itrd.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from itrd.models.base import FeatureNet, Outputs

__all__ = ["BENCHMARK_MODELS", "FeatureNet", "Outputs", "create_model", "list_models"]

_X4 = {"widths": (32, 64, 128, 256)}

# Public name (case matters) -> module of this package, class, constructor arguments.
# This is the only place where a name is listed.
_BENCHMARK: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet8": ("resnet", "ResNet", {"depth": 8}),
    "resnet14": ("resnet", "ResNet", {"depth": 14}),
    "resnet20": ("resnet", "ResNet", {"depth": 20}),
    "resnet32": ("resnet", "ResNet", {"depth": 32}),
    "resnet44": ("resnet", "ResNet", {"depth": 44}),
    "resnet56": ("resnet", "ResNet", {"depth": 56}),
    "resnet110": ("resnet", "ResNet", {"depth": 110}),
    "resnet8x4": ("resnet", "ResNet", {"depth": 8, **_X4}),
    "resnet32x4": ("resnet", "ResNet", {"depth": 32, **_X4}),
    "ResNet50": ("resnet50", "ResNet50", {}),
    "wrn_16_1": ("wrn", "WideResNet", {"depth": 16, "widening": 1}),
    "wrn_16_2": ("wrn", "WideResNet", {"depth": 16, "widening": 2}),
    "wrn_40_1": ("wrn", "WideResNet", {"depth": 40, "widening": 1}),
    "wrn_40_2": ("wrn", "WideResNet", {"depth": 40, "widening": 2}),
    "vgg8": ("vgg", "VGG", {"convs": (1, 1, 1, 1, 1)}),
    "vgg11": ("vgg", "VGG", {"convs": (1, 1, 2, 2, 2)}),
    "vgg13": ("vgg", "VGG", {"convs": (2, 2, 2, 2, 2)}),
    "vgg16": ("vgg", "VGG", {"convs": (2, 2, 3, 3, 3)}),
    "vgg19": ("vgg", "VGG", {"convs": (2, 2, 4, 4, 4)}),
    "MobileNetV2": ("mobilenetv2", "MobileNetV2", {}),
    "ShuffleV1": ("shufflenetv1", "ShuffleNetV1", {}),
    "ShuffleV2": ("shufflenetv2", "ShuffleNetV2", {}),
}
_TABLE = {
    **_BENCHMARK,
    "resnet18_cifar": ("resnet18", "ResNet18", {}),
    "resnet18_1w1a": (
        "binary.resnet",
        "BinaryResNet",
        {"widths": (64, 128, 256, 512), "blocks": (2, 2, 2, 2)},
    ),
    "resnet20_1w1a": (
        "binary.resnet",
        "BinaryResNet",
        {"widths": (16, 32, 64), "blocks": (3, 3, 3), "shortcuts": 2},
    ),
    "vgg_small_1w1a": ("binary.vgg", "BinaryVGGSmall", {}),
}

# The networks of the published CIFAR-100 tables, whose names the original scripts' flags take.
BENCHMARK_MODELS = tuple(_BENCHMARK)


def list_models() -> list[str]:
    """Return the public names of all networks, family by family."""
    return list(_TABLE)


def create_model(name: str, num_classes: int = 100) -> FeatureNet:
    """Build a network with fresh weights from the global torch generator.

    Args:
        name: one of :func:`list_models`.
        num_classes: K, the number of logits.

    Returns:
        The network, in train mode, on torch's default device. ``net(images)`` maps normalised images (B, 3, 32, 32) to
        logits (B, K); ``net(images, is_feat=True)`` returns its features, too, and ``net.observe(images)`` names
        them, see :class:`itrd.models.base.Outputs`.

    Raises:
        UnknownNameError: no network has this name; the message suggests the closest one.
        UserError: ``num_classes`` is below 1.
    """
    if name not in _TABLE:
        raise UnknownNameError("model", name, _TABLE)
    if num_classes < 1:
        raise UserError(f"a classifier needs at least one class; got num_classes={num_classes}")
    module, cls, arguments = _TABLE[name]
    factory = getattr(importlib.import_module(f"{__name__}.{module}"), cls)
    net: FeatureNet = factory(num_classes=num_classes, **arguments)
    net.arch = name
    return net


def __getattr__(name: str) -> Any:
    """Reach the interface classes without importing torch until somebody asks for them."""
    if name in ("FeatureNet", "Outputs"):
        return getattr(importlib.import_module(f"{__name__}.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

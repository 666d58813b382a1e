"""Networks of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itrd.engine.checkpoint import load_into
from itrd.engine.hubs._library import (
    Preprocessing,
    classes_in,
    fetch_url,
    replace_last_linear,
)
from itrd.errors import UnknownNameError
from itrd.extras import require
from itrd.models.observe import last_linear


class Torchvision:
    """torchvision: ``resnet50``, with its newest weights, or ``resnet50.IMAGENET1K_V1``."""

    # Their pretrained weights expect another normalisation, which the network then applies itself.
    _TRANSFORMING = ("googlenet", "inception_v3")

    def _models(self) -> Any:
        return require("torchvision.models", "torchvision")

    def check(self, name: str) -> None:
        models = self._models()
        arch, _, tag = name.partition(".")
        known = models.list_models(module=models)
        if arch not in known:
            raise UnknownNameError(
                "torchvision network", arch, known, hint="torchvision.models.list_models() lists them"
            )
        tags = [weights.name for weights in models.get_model_weights(arch)]
        if tag and tag not in tags:
            raise UnknownNameError("torchvision weights", tag, tags)

    def create(self, name: str, num_classes: int | None, **more: Any) -> nn.Module:
        arch = name.partition(".")[0]
        if arch in self._TRANSFORMING:
            more["init_weights"] = True
        return self._models().get_model(
            arch, weights=None, **({} if num_classes is None else {"num_classes": num_classes}), **more
        )

    def load(self, name: str, state: dict[str, Tensor], source: str) -> nn.Module:
        more = {"transform_input": True} if name.partition(".")[0] in self._TRANSFORMING else {}
        with torch.device("meta"):
            classifier = last_linear(self.create(name, None))
        net = self.create(name, classes_in(state, classifier), **more)
        net.arch = f"torchvision:{name}"  # type: ignore[assignment]
        load_into(net, state, source)
        return net

    def _weights(self, name: str) -> Any:
        arch, _, tag = name.partition(".")
        weights = self._models().get_model_weights(arch)
        return weights[tag] if tag else weights.DEFAULT

    def fetch(self, name: str) -> Path:
        return fetch_url(self._weights(name).url)

    def reset_classifier(self, net: nn.Module, num_classes: int) -> None:
        replace_last_linear(net, num_classes)

    def preprocessing(self, name: str) -> Preprocessing:
        transforms = self._weights(name).transforms()
        return Preprocessing(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))

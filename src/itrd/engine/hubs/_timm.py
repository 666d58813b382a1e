"""Networks of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itrd.engine.hubs._library import (
    Preprocessing,
    classes_in,
    fetch_from_hub,
    fetch_url,
    misfit,
)
from itrd.errors import UnknownNameError, UserError
from itrd.extras import require


class Timm:
    """timm: ``resnet50``, or with the tag of the weights ``resnet50.a1_in1k``."""

    def check(self, name: str) -> None:
        timm = require("timm", "timm")
        if not timm.is_model(name):
            raise UnknownNameError(
                "timm network", name, timm.list_models(), hint="timm.list_models() lists them"
            )
        tag, tags = name.partition(".")[2], timm.list_pretrained(name.partition(".")[0])
        if tag and name not in tags:
            raise UnknownNameError("timm weights", name, tags, hint=f"there are {', '.join(tags) or 'none'}")

    def _config(self, name: str) -> Any:
        config = require("timm.models", "timm").get_pretrained_cfg(name)
        if config is None:
            raise UserError(f"timm has no weights for {name}; choose another network, or give {name}@FILE")
        return config

    def create(self, name: str, num_classes: int | None) -> nn.Module:
        return require("timm", "timm").create_model(
            name, **({} if num_classes is None else {"num_classes": num_classes})
        )

    def load(self, name: str, state: dict[str, Tensor], source: str) -> nn.Module:
        timm = require("timm", "timm")
        config = timm.models.get_pretrained_cfg(name)
        classifier = None if config is None else config.classifier
        classifier = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
        classes = classes_in(state, classifier)
        # timm's way of loading knows the formats in which weights of its networks were published.
        overlay: dict[str, Any] = {"state_dict": state}
        if classes is not None and not (config is not None and config.label_offset):
            overlay["num_classes"] = classes
        try:
            return timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                **({"num_classes": overlay["num_classes"]} if "num_classes" in overlay else {}),
            )
        except (RuntimeError, KeyError) as error:
            raise misfit(source, f"timm:{name}", error) from None

    def fetch(self, name: str) -> Path:
        config = self._config(name)
        if config.hf_hub_id:
            names = (
                [config.hf_hub_filename]
                if config.hf_hub_filename
                else ["model.safetensors", "pytorch_model.bin"]
            )
            path = fetch_from_hub("timm", config.hf_hub_id, *names)
            assert path is not None
            return path
        if not config.url:
            raise UserError(f"timm has no weights for {name}; choose another network, or give {name}@FILE")
        return fetch_url(config.url)

    def reset_classifier(self, net: nn.Module, num_classes: int) -> None:
        net.reset_classifier(num_classes)  # type: ignore[operator]

    def preprocessing(self, name: str) -> Preprocessing:
        config = require("timm.models", "timm").get_pretrained_cfg(name)
        if config is None:
            return Preprocessing()
        return Preprocessing(config.input_size[-1], tuple(config.mean), tuple(config.std))

"""Image classifiers of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itrd.engine.hubs._library import (
    Preprocessing,
    classes_in,
    fetch_from_hub,
    misfit,
    replace_last_linear,
)
from itrd.errors import CheckpointError, UserError, first_line
from itrd.extras import require
from itrd.files import read_limited
from itrd.models.observe import last_linear

_MAX_JSON = 1 << 20


class Transformers:
    """transformers: a repository of the Hugging Face hub, ``ORG/NAME``, or a local folder with ``config.json``."""

    def _auto(self) -> Any:
        return require("transformers.models.auto", "transformers")

    def check(self, name: str) -> None:
        self._auto()

    def _config(self, name: str) -> Any:
        path = fetch_from_hub("hf", name, "config.json")
        try:
            return self._auto().AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot use the configuration of hf:{name}: {first_line(error)}") from None

    def create(self, name: str, num_classes: int | None) -> nn.Module:
        config = self._config(name)
        if num_classes is not None:
            config.num_labels = num_classes
        try:
            return self._auto().AutoModelForImageClassification.from_config(config)
        except (ValueError, OSError, RuntimeError) as error:
            reason = first_line(error)
            raise UserError(f"hf:{name} is no image classifier that can be built: {reason}") from None

    def load(self, name: str, state: dict[str, Tensor], source: str) -> nn.Module:
        with torch.device("meta"):
            shell = self.create(name, None)
        config: Any = shell.config
        classes = classes_in(state, last_linear(shell))
        if classes is not None:
            config.num_labels = classes
        # transformers' way of loading knows how the names of weights changed over the years.
        family: Any = type(shell)
        try:
            net, info = family.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True
            )
        except (ValueError, RuntimeError) as error:
            raise misfit(source, f"hf:{name}", error) from None
        wrong = [str(key) for kind in ("missing", "mismatched", "unexpected") for key in info[f"{kind}_keys"]]
        if wrong:
            raise CheckpointError(
                f"{source} is not a checkpoint of hf:{name}: {len(wrong)} entries do not fit ({wrong[0]})"
            )
        return net

    def fetch(self, name: str) -> Path:
        path = fetch_from_hub("hf", name, "model.safetensors")
        assert path is not None
        return path

    def reset_classifier(self, net: nn.Module, num_classes: int) -> None:
        replace_last_linear(net, num_classes)
        net.config.num_labels = num_classes  # type: ignore[union-attr]

    def preprocessing(self, name: str) -> Preprocessing:
        path = fetch_from_hub("hf", name, "preprocessor_config.json", needed=False)
        size = getattr(self._config(name), "image_size", None)
        size = size if isinstance(size, int) else None
        if path is None:
            return Preprocessing(size)
        try:
            said = json.loads(read_limited(path, _MAX_JSON))
            crop = said.get("crop_size") if said.get("do_center_crop", "crop_size" in said) else None
            asked = crop or said.get("size")
            if isinstance(asked, dict):
                asked = asked.get("height") or asked.get("shortest_edge")
            mean, std = said.get("image_mean"), said.get("image_std")
            if not said.get("do_normalize", True):
                mean, std = (0.0,) * 3, (1.0,) * 3
            numbers = [None if v is None else tuple(float(x) for x in v) for v in (mean, std)]
            return Preprocessing(asked if isinstance(asked, int) else size, *numbers)
        except (OSError, ValueError, TypeError, AttributeError):
            raise UserError(f"{path} does not say how images are prepared; it is damaged") from None

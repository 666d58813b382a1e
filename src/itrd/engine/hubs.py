"""Networks of other libraries by name: ``timm:NAME``, ``torchvision:NAME``, ``hf:ORG/NAME`` (transformers).

``@FILE`` after the name takes the weights from a file (.safetensors, .pth), ``@pretrained`` the library's own. Weights
files are fetched by the libraries' own clients, into their caches, and read by :mod:`itrd.engine.checkpoint`
alone, so that nothing a file says is executed. Code that comes with a model on a hub is never run.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from itrd.engine.checkpoint import MAX_CLASSES, load_into, read_weights
from itrd.engine.files import read_limited, sha256_of
from itrd.errors import CheckpointError, UnknownNameError, UserError
from itrd.models.observe import last_linear

PRETRAINED = "pretrained"
_EXTRAS = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}
_MAX_JSON = 1 << 20
_HASH = re.compile(r"-([0-9a-f]{8,})\.\w+$")  # of the content, as torch's servers write it into file names


@dataclass(frozen=True)
class Preprocessing:
    """What images a pretrained network expects.

    Attributes:
        size: height and width in pixels; None where nothing is said.
        mean, std: per channel, of pixels in 0..1; None likewise.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class HubNetwork:
    """A network of a library.

    Attributes:
        net: the network.
        arch: its name without weights, ``timm:resnet18``; ``net.arch`` is the same.
        num_classes: K.
        source: name, with the file its weights are from, or ``fresh``.
        sha256: checksum of that file; None for fresh weights.
        preprocessing: of the library's network of this name; None for fresh weights.
    """

    net: nn.Module
    arch: str
    num_classes: int
    source: str
    sha256: str | None
    preprocessing: Preprocessing | None


@dataclass(frozen=True)
class _Spec:
    library: str
    name: str
    weights: str | None

    @property
    def arch(self) -> str:
        return f"{self.library}:{self.name}"


def is_hub(spec: str) -> bool:
    """Whether a name begins with one of the libraries."""
    return spec.partition(":")[0] in _EXTRAS and ":" in spec


def check(spec: str) -> None:
    """Refuse a name that its library does not know, before anything is built or fetched.

    Raises:
        UserError: the library is not installed, or knows no such network, or the weights file is missing.
    """
    parsed = _parse(spec)
    _LIBRARIES[parsed.library].check(parsed.name)
    if parsed.weights not in (None, PRETRAINED) and not Path(str(parsed.weights)).is_file():
        raise CheckpointError(f"no weights at {parsed.weights}; give a .safetensors or .pth file after the @")


def build(spec: str, num_classes: int | None = None, *, pretrained: bool = False) -> HubNetwork:
    """Build a network of a library.

    Args:
        spec: name, perhaps with weights.
        num_classes: K; where the weights are for another number, the classifier gets fresh weights from the global
            generator. None for the number that the weights have.
        pretrained: take the library's weights where the name does not say which.

    Raises:
        UserError: no such library, network or weights, or they cannot be fetched.
        CheckpointError: the weights are damaged, unsafe or of another network.
    """
    check(spec)
    parsed = _parse(spec)
    library = _LIBRARIES[parsed.library]
    weights = parsed.weights or (PRETRAINED if pretrained else None)
    if weights is None:
        net = library.create(parsed.name, num_classes)
        path: Path | None = None
    else:
        path = library.fetch(parsed.name) if weights == PRETRAINED else Path(weights)
        net = library.load(parsed.name, _read(path), str(path))
    classes = _classes(net, parsed.arch)
    if num_classes is not None and num_classes != classes:
        library.reset_classifier(net, num_classes)
        classes = num_classes
    net.arch = parsed.arch
    return HubNetwork(
        net.eval(),
        parsed.arch,
        classes,
        f"{parsed.arch} (fresh)" if path is None else f"{parsed.arch} ({path})",
        None if path is None else sha256_of(path),
        None if path is None else library.preprocessing(parsed.name),
    )


def _parse(spec: str) -> _Spec:
    library, _, rest = spec.partition(":")
    name, _, weights = rest.partition("@")
    if not name:
        raise UserError(f"{spec!r} names no network; write {library}:NAME, or {library}:NAME@FILE")
    return _Spec(library, name, weights or None)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise CheckpointError(f"{path} is neither a .safetensors nor a .pth file; choose other weights")
    return read_weights(path)[0]


def _classes(net: nn.Module, arch: str) -> int:
    said = getattr(getattr(net, "config", None), "num_labels", None) or getattr(net, "num_classes", None)
    if isinstance(said, int) and said > 0:
        return said
    last = last_linear(net)
    if last is None:
        raise UserError(
            f"{arch} has no linear layer, so its number of classes cannot be told; choose another network"
        )
    return int(net.get_submodule(last).out_features)  # type: ignore[arg-type]


def _classes_in(state: Mapping[str, Tensor], classifier: str | None) -> int | None:
    """Number of classes of the weights, if they have a classifier of this name."""
    weight = state.get(f"{classifier}.weight")
    return len(weight) if weight is not None and 0 < len(weight) <= MAX_CLASSES else None


def _import(name: str, library: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # the latter where it was built for another torch
        extra = _EXTRAS[library]
        if not isinstance(error, ModuleNotFoundError):
            raise UserError(
                f"{library}: {extra} is installed and cannot be imported ({error}); do the versions of torch and "
                "torchvision belong together?"
            ) from None
        raise UserError(f"{library}: networks need {extra} ({error}); pip install 'itrd[{extra}]'") from None


def _fetch_url(url: str) -> Path:
    """Return the file behind a URL, from torch's cache or fetched into it; its name says the checksum's beginning."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    found = _HASH.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            torch.hub.download_url_to_file(url, str(path), found and found.group(1), progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(f"cannot fetch {url}: {error}; give the weights as a file, NAME@FILE") from None
    if found and not sha256_of(path).startswith(found.group(1)):
        raise CheckpointError(f"{path} is not what its name says; delete it, and it is fetched again")
    return path


def _fetch_from_hub(library: str, repository: str, *names: str, needed: bool = True) -> Path | None:
    """Return the first of some files that a repository of the Hugging Face hub, or a local folder, has."""
    if Path(repository).is_dir():
        local = [Path(repository) / name for name in names if (Path(repository) / name).is_file()]
        if local:
            return local[0]
    else:
        hub = _import("huggingface_hub", library)
        repository, _, revision = repository.partition("@")
        for name in names:
            try:
                return Path(hub.hf_hub_download(repository, name, revision=revision or None))
            except Exception as error:  # of the client and of whatever it uses to connect
                absent = isinstance(error, hub.errors.EntryNotFoundError)
                if not absent or isinstance(
                    error, hub.errors.LocalEntryNotFoundError
                ):  # the latter: no connection
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    advice = "look at the name and the connection, or give the weights as a file, NAME@FILE"
                    raise UserError(f"cannot fetch {name} of {repository}: {reason}; {advice}") from None
    if needed:
        raise UserError(f"{repository} has no {' or '.join(names)}; choose another network or NAME@FILE")
    return None


# --- the libraries ---------------------------------------------------------------------------------------


class _Timm:
    """timm: ``resnet50``, or with the tag of the weights ``resnet50.a1_in1k``."""

    def check(self, name: str) -> None:
        timm = _import("timm", "timm")
        if not timm.is_model(name):
            raise UnknownNameError(
                "timm network", name, timm.list_models(), hint="timm.list_models() lists them"
            )
        tag, tags = name.partition(".")[2], timm.list_pretrained(name.partition(".")[0])
        if tag and name not in tags:
            raise UnknownNameError("timm weights", name, tags, hint=f"there are {', '.join(tags) or 'none'}")

    def _config(self, name: str) -> Any:
        config = _import("timm.models", "timm").get_pretrained_cfg(name)
        if config is None:
            raise UserError(f"timm has no weights for {name}; choose another network, or give {name}@FILE")
        return config

    def create(self, name: str, num_classes: int | None) -> nn.Module:
        return _import("timm", "timm").create_model(
            name, **({} if num_classes is None else {"num_classes": num_classes})
        )

    def load(self, name: str, state: dict[str, Tensor], source: str) -> nn.Module:
        timm = _import("timm", "timm")
        config = timm.models.get_pretrained_cfg(name)
        classifier = None if config is None else config.classifier
        classifier = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
        classes = _classes_in(state, classifier)
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
            raise _misfit(source, f"timm:{name}", error) from None

    def fetch(self, name: str) -> Path:
        config = self._config(name)
        if config.hf_hub_id:
            names = (
                [config.hf_hub_filename]
                if config.hf_hub_filename
                else ["model.safetensors", "pytorch_model.bin"]
            )
            path = _fetch_from_hub("timm", config.hf_hub_id, *names)
            assert path is not None
            return path
        if not config.url:
            raise UserError(f"timm has no weights for {name}; choose another network, or give {name}@FILE")
        return _fetch_url(config.url)

    def reset_classifier(self, net: nn.Module, num_classes: int) -> None:
        net.reset_classifier(num_classes)  # type: ignore[operator]

    def preprocessing(self, name: str) -> Preprocessing:
        config = _import("timm.models", "timm").get_pretrained_cfg(name)
        if config is None:
            return Preprocessing()
        return Preprocessing(config.input_size[-1], tuple(config.mean), tuple(config.std))


class _Torchvision:
    """torchvision: ``resnet50``, with its newest weights, or ``resnet50.IMAGENET1K_V1``."""

    # Their pretrained weights expect another normalisation, which the network then applies itself.
    _TRANSFORMING = ("googlenet", "inception_v3")

    def _models(self) -> Any:
        return _import("torchvision.models", "torchvision")

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
        net = self.create(name, _classes_in(state, classifier), **more)
        net.arch = f"torchvision:{name}"  # type: ignore[assignment]
        load_into(net, state, source)
        return net

    def _weights(self, name: str) -> Any:
        arch, _, tag = name.partition(".")
        weights = self._models().get_model_weights(arch)
        return weights[tag] if tag else weights.DEFAULT

    def fetch(self, name: str) -> Path:
        return _fetch_url(self._weights(name).url)

    def reset_classifier(self, net: nn.Module, num_classes: int) -> None:
        _replace_last_linear(net, num_classes)

    def preprocessing(self, name: str) -> Preprocessing:
        transforms = self._weights(name).transforms()
        return Preprocessing(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


class _Transformers:
    """transformers: a repository of the Hugging Face hub, ``ORG/NAME``, or a local folder with ``config.json``."""

    def _auto(self) -> Any:
        return _import("transformers.models.auto", "hf")

    def check(self, name: str) -> None:
        self._auto()

    def _config(self, name: str) -> Any:
        path = _fetch_from_hub("hf", name, "config.json")
        try:
            return self._auto().AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot use the configuration of hf:{name}: {str(error).splitlines()[0]}"
            ) from None

    def create(self, name: str, num_classes: int | None) -> nn.Module:
        config = self._config(name)
        if num_classes is not None:
            config.num_labels = num_classes
        try:
            return self._auto().AutoModelForImageClassification.from_config(config)
        except (ValueError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"hf:{name} is no image classifier that can be built: {reason}") from None

    def load(self, name: str, state: dict[str, Tensor], source: str) -> nn.Module:
        with torch.device("meta"):
            shell = self.create(name, None)
        config: Any = shell.config
        classes = _classes_in(state, last_linear(shell))
        if classes is not None:
            config.num_labels = classes
        # transformers' way of loading knows how the names of weights changed over the years.
        family: Any = type(shell)
        try:
            net, info = family.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True
            )
        except (ValueError, RuntimeError) as error:
            raise _misfit(source, f"hf:{name}", error) from None
        wrong = [str(key) for kind in ("missing", "mismatched", "unexpected") for key in info[f"{kind}_keys"]]
        if wrong:
            raise CheckpointError(
                f"{source} is not a checkpoint of hf:{name}: {len(wrong)} entries do not fit ({wrong[0]})"
            )
        return net

    def fetch(self, name: str) -> Path:
        path = _fetch_from_hub("hf", name, "model.safetensors")
        assert path is not None
        return path

    def reset_classifier(self, net: nn.Module, num_classes: int) -> None:
        _replace_last_linear(net, num_classes)
        net.config.num_labels = num_classes  # type: ignore[union-attr]

    def preprocessing(self, name: str) -> Preprocessing:
        path = _fetch_from_hub("hf", name, "preprocessor_config.json", needed=False)
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


def _replace_last_linear(net: nn.Module, num_classes: int) -> None:
    path = last_linear(net)
    if path is None:
        raise UserError(
            f"{type(net).__name__} has no linear layer to replace; leave out the weights, or choose another"
        )
    old = net.get_submodule(path)
    assert isinstance(old, nn.Linear)
    net.set_submodule(path, nn.Linear(old.in_features, num_classes, bias=old.bias is not None))


def _misfit(source: str, arch: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{source} is not a checkpoint of {arch}: {' '.join(str(error).split())[:300]}")


_LIBRARIES: dict[str, Any] = {"timm": _Timm(), "torchvision": _Torchvision(), "hf": _Transformers()}

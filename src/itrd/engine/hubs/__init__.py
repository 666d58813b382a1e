"""Networks of other libraries by name: ``timm:NAME``, ``torchvision:NAME``, ``hf:ORG/NAME`` (transformers).

``@FILE`` after the name takes the weights from a file (.safetensors, .pth) or a run folder, ``@pretrained`` the
library's own. Weights files are fetched by the libraries' own clients, into their caches, and read by
:mod:`itrd.engine.checkpoint` alone, so that nothing a file says is executed. Code that comes with a model on a hub is
never run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from itrd.engine.checkpoint import read_weights
from itrd.engine.config import LIBRARIES
from itrd.engine.hubs._library import Library, Preprocessing
from itrd.engine.hubs._timm import Timm
from itrd.engine.hubs._torchvision import Torchvision
from itrd.engine.hubs._transformers import Transformers
from itrd.errors import CheckpointError, UnknownNameError, UserError
from itrd.files import sha256_of
from itrd.models import list_models
from itrd.models.observe import last_linear

__all__ = ["PRETRAINED", "HubNetwork", "Preprocessing", "build", "check", "check_prefix", "is_hub"]

PRETRAINED = "pretrained"
_LIBRARIES: dict[str, Library] = dict(zip(LIBRARIES, (Timm(), Torchvision(), Transformers()), strict=True))


@dataclass(frozen=True)
class HubNetwork:
    """A network of a library.

    Attributes:
        net: the network.
        arch: its name without weights, ``timm:resnet18``; ``net.arch`` is the same.
        num_classes: K.
        source: the file its weights are from, behind the name where the library chose it; or the name and ``fresh``.
        sha256: checksum of that file; None for fresh weights.
        preprocessing: of the library's network of this name; None for fresh weights, and for those that were trained
            here, whose metadata tells.
        metadata: of the weights' file.
        held_classes: number of classes of the weights, where that is another one and the classifier was made anew.
    """

    net: nn.Module
    arch: str
    num_classes: int
    source: str
    sha256: str | None
    preprocessing: Preprocessing | None
    metadata: dict[str, str] = field(default_factory=dict)
    held_classes: int | None = None


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
    return spec.partition(":")[0] in _LIBRARIES and ":" in spec


def check_prefix(spec: str) -> None:
    """Refuse a name that begins, before a colon, with neither a library nor a network of this package.

    Raises:
        UnknownNameError: it does.
    """
    prefix, colon, _ = spec.partition(":")
    known = [*_LIBRARIES, *list_models()]
    if colon and "/" not in prefix and prefix not in known:
        hint = f"known: {', '.join(_LIBRARIES)} and the names of `itrd models`"
        raise UnknownNameError("prefix", prefix, known, hint=hint)


def check(spec: str) -> None:
    """Refuse a name that its library does not know, before anything is built or fetched.

    Raises:
        UserError: the library is not installed, or knows no such network, or the weights file is missing.
    """
    parsed = _parse(spec)
    _LIBRARIES[parsed.library].check(parsed.name)
    if parsed.weights not in (None, PRETRAINED) and not _file(str(parsed.weights)).is_file():
        raise CheckpointError(
            f"no weights at {parsed.weights}; give a run folder, a .safetensors or a .pth file after the @"
        )


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
    path: Path | None = None
    metadata: dict[str, str] = {}
    if weights is None:
        net = library.create(parsed.name, num_classes)
    else:
        path = library.fetch(parsed.name) if weights == PRETRAINED else _file(weights)
        state, metadata = _read(path)
        net = library.load(parsed.name, state, str(path))
    classes = held = _classes(net, parsed.arch)
    if num_classes is not None and num_classes != classes:
        library.reset_classifier(net, num_classes)
        classes = num_classes
    net.arch = parsed.arch  # type: ignore[assignment]
    return HubNetwork(
        net.eval(),
        parsed.arch,
        classes,
        _source(parsed, path),
        None if path is None else sha256_of(path),
        None if path is None or "data" in metadata else library.preprocessing(parsed.name),
        metadata,
        held if held != classes else None,
    )


def _source(spec: _Spec, path: Path | None) -> str:
    if path is None:
        return f"{spec.arch} (fresh)"
    return f"{spec.arch} ({path})" if spec.weights in (None, PRETRAINED) else str(path)


def _parse(spec: str) -> _Spec:
    library, _, rest = spec.partition(":")
    name, at, weights = rest.partition("@")
    if not name:
        raise UserError(f"{spec!r} names no network; write {library}:NAME, or {library}:NAME@FILE")
    if at and not weights:
        raise UserError(f"nothing follows the @ of {spec!r}; name a file or run folder, or leave the @ out")
    if ":" in name:
        name, _, weights = name.partition(":")
        raise UserError(f"weights stand behind an @ here; write {library}:{name}@{weights}")
    return _Spec(library, name, weights or None)


def _file(weights: str) -> Path:
    """The file of weights, or that of a run folder."""
    path = Path(weights)
    return path / "last.safetensors" if path.is_dir() else path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise CheckpointError(f"{path} is neither a .safetensors nor a .pth file; choose other weights")
    return read_weights(path)


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

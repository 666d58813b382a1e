"""What a library of networks offers here, and what the libraries share: imports, fetching, classifiers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from itrd.engine.checkpoint import MAX_CLASSES
from itrd.errors import CheckpointError, UserError, first_line
from itrd.extras import require
from itrd.files import sha256_of
from itrd.models.observe import last_linear

# The extra of this package that brings a library.
EXTRAS = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}
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


class Library(Protocol):
    """One library. A name may end in a tag that chooses among its weights."""

    def check(self, name: str) -> None:
        """Refuse a name that the library does not know; raises UserError."""

    def create(self, name: str, num_classes: int | None) -> nn.Module:
        """Build a network with fresh weights; ``num_classes`` None for the library's number."""

    def load(self, name: str, state: dict[str, Tensor], source: str) -> nn.Module:
        """Build a network with these weights; raises CheckpointError, which names ``source``."""

    def fetch(self, name: str) -> Path:
        """Return the file of the library's own weights, fetched if necessary; raises UserError."""

    def reset_classifier(self, net: nn.Module, num_classes: int) -> None:
        """Give a network a fresh classifier for another number of classes."""

    def preprocessing(self, name: str) -> Preprocessing:
        """Say what images the library's own weights expect."""


def classes_in(state: Mapping[str, Tensor], classifier: str | None) -> int | None:
    """Number of classes of the weights, if they have a classifier of this name."""
    weight = state.get(f"{classifier}.weight")
    return len(weight) if weight is not None and 0 < len(weight) <= MAX_CLASSES else None


def fetch_url(url: str) -> Path:
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


def fetch_from_hub(library: str, repository: str, *names: str, needed: bool = True) -> Path | None:
    """Return the first of some files that a repository of the Hugging Face hub, or a local folder, has."""
    if Path(repository).is_dir():
        local = [Path(repository) / name for name in names if (Path(repository) / name).is_file()]
        if local:
            return local[0]
    else:
        hub = require("huggingface_hub", EXTRAS[library])
        repository, _, revision = repository.partition("@")
        for name in names:
            try:
                return Path(hub.hf_hub_download(repository, name, revision=revision or None))
            except Exception as error:  # of the client and of whatever it uses to connect
                absent = isinstance(error, hub.errors.EntryNotFoundError)
                if not absent or isinstance(
                    error, hub.errors.LocalEntryNotFoundError
                ):  # the latter: no connection
                    reason = first_line(error)
                    advice = "look at the name and the connection, or give the weights as a file, NAME@FILE"
                    raise UserError(f"cannot fetch {name} of {repository}: {reason}; {advice}") from None
    if needed:
        raise UserError(f"{repository} has no {' or '.join(names)}; choose another network or NAME@FILE")
    return None


def replace_last_linear(net: nn.Module, num_classes: int) -> None:
    """Put a fresh linear layer of another width in the place of the last one."""
    path = last_linear(net)
    if path is None:
        raise UserError(
            f"{type(net).__name__} has no linear layer to replace; leave out the weights, or choose another"
        )
    old = net.get_submodule(path)
    assert isinstance(old, nn.Linear)
    net.set_submodule(path, nn.Linear(old.in_features, num_classes, bias=old.bias is not None))


def misfit(source: str, arch: str, error: Exception) -> CheckpointError:
    """Say that weights are not those of a network, in short where torch lists every entry that does not fit."""
    text = " ".join(str(error).split())
    said = []
    for what in ("Missing", "Unexpected"):
        listed = re.search(rf'{what} key\(s\) in state_dict: ((?:"[^"]*"(?:, )?)+)', text)
        names = re.findall('"([^"]*)"', listed[1]) if listed else []
        if names:
            said.append(f"{len(names)} {what.lower()} entries ({', '.join(names[:2])})")
    shapes = re.findall(r"size mismatch for (\S+):", text)
    if shapes:
        said.append(f"{len(shapes)} of another shape ({', '.join(shapes[:2])})")
    return CheckpointError(f"{source} is not a checkpoint of {arch}: {', '.join(said) or text[:300]}")

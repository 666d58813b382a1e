"""The teacher zoo: trained networks by name, in half precision, each with a card that says what it is.

``zoo/NAME.safetensors`` holds the weights and ``zoo/NAME.json`` the card: accuracy of the last and of the best
epoch, accuracy after rounding to half precision, seed, settings, checksum. A name may contain folders, as in
``smoke/resnet20``. What is loaded is what the card describes, or nothing: the checksum is verified.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from itrd.engine.checkpoint import canonical_safetensors
from itrd.errors import CheckpointError
from itrd.files import read_json, sha256_of, write_atomically, write_json

ZOO = Path("zoo")
CARD_FORMAT = 1
_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.-]*/)*[A-Za-z0-9][A-Za-z0-9_.-]*")


def find(name: str, zoo: Path = ZOO) -> Path | None:
    """Return the file of a network of the zoo, or None if it has none of this name."""
    if not _NAME.fullmatch(name):
        return None
    path = _file(name, zoo)
    return path if path.is_file() else None


def _file(name: str, zoo: Path) -> Path:
    return zoo / PurePosixPath(f"{name}.safetensors")


def is_in_zoo(path: Path) -> bool:
    """Whether a file is one of a zoo: it has a card beside it."""
    return path.suffix == ".safetensors" and path.with_suffix(".json").is_file()


def read_card(path: Path) -> dict[str, Any]:
    """Read the card beside a file of the zoo and verify the file's checksum.

    Raises:
        CheckpointError: no card, or not this file's.
    """
    card_path = path.with_suffix(".json")
    try:
        card = read_json(card_path)
        expected = card["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path} has no readable card {card_path.name} beside it; fetch both again, or train it again"
        ) from None
    if sha256_of(path) != expected:
        raise CheckpointError(
            f"{path} is not the file that {card_path.name} describes (checksum differs); fetch both again"
        )
    return card


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round the weights to half precision.

    Running statistics of batch norms stay as they are: they are small, and a variance may lie outside of what
    half precision can hold.
    """
    return {
        key: value.half() if value.dtype == torch.float32 and ".running_" not in f".{key}" else value
        for key, value in state.items()
    }


def single(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the rounding's type, not the rounding: half precision becomes float32."""
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in state.items()}


def round_weights(net: nn.Module) -> None:
    """Give a network the weights that it will have when it comes back from the zoo."""
    net.load_state_dict(single(halved(net.state_dict())))


def write(name: str, net: nn.Module, card: dict[str, Any], zoo: Path = ZOO) -> Path:
    """Put a network and its card into the zoo; ``card`` is completed with format and checksum.

    The file comes first and the card last, so that a crash between the two leaves a file without a card, which
    nothing will load.

    Raises:
        CheckpointError: the zoo has a network of this name.
    """
    path = _file(name, zoo)
    if is_in_zoo(path):
        raise CheckpointError(f"{path} exists; the zoo's networks are never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = ("arch", "num_classes", "data", "normalisation")
    metadata = {key: str(card[key]) for key in wanted if key in card}
    write_atomically(path, canonical_safetensors(halved(net.state_dict()), metadata))
    write_json(path.with_suffix(".json"), {"format": CARD_FORMAT, **card, "sha256": sha256_of(path)})
    return path

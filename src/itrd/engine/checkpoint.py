"""Weights in and out, and the full state of an interrupted run.

Nothing here executes what a file says: ``.pth`` files are read by :mod:`itrd.engine.pth`, everything else is
safetensors. No file is read that is larger than ``MAX_BYTES``, and none takes more than a few times its size.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from itrd.engine.pth import UnreadArray, load_pth
from itrd.errors import CheckpointError, UserError
from itrd.files import PARTIAL, link, read_limited, sync_folder, write_atomically

MAX_BYTES = 1 << 33  # of any checkpoint; the largest of a benchmark run has 0.3 GB
_MAGIC = b"itrd-checkpoint-1 "
MAX_CLASSES = 100_000  # of a network that is built because a file says so
_HEADER = len(_MAGIC) + 64 + 1


# --- weights ---------------------------------------------------------------------------------------------


def save_weights(path: Path, net: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a network's state dict as safetensors, with string metadata."""
    write_atomically(path, canonical_safetensors(net.state_dict(), metadata))


def check_writable(role: str, net: nn.Module) -> None:
    """Refuse a network whose state holds something else than tensors, which no file of weights could hold.

    Raises:
        UserError: names the module.
    """
    for key, value in net.state_dict().items():
        if not isinstance(value, Tensor):
            path = key.rpartition(".")[0]
            kind = type(net.get_submodule(path)).__name__
            raise UserError(
                f"the {role} {type(net).__name__} cannot be saved: the extra state of {path or 'its outermost module'} "
                f"({kind}) is {type(value).__name__}, no tensor; return a tensor from get_extra_state()"
            )


def canonical_safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialise so that equal weights and metadata give equal bytes, hence equal checksums.

    The library writes the metadata in an order that differs from process to process, and refuses tensors that share
    memory, as tied weights do: each is written whole.
    """
    own: dict[str, Tensor] = {}
    held: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        own[key] = tensor.clone() if storage in held else tensor
        held.add(storage)
    content = save_safetensors(own, dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data
    return len(header).to_bytes(8, "little") + header + content[end:]


def sha256_of_weights(net: nn.Module) -> str:
    """Return the checksum (hex) of everything in a network's state, by name and by value."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:  # what a module of somebody else adds to its state
            digest.update(repr(value).encode())
    return digest.hexdigest()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and its metadata from a ``.safetensors`` or ``.pth`` file.

    Of a ``.pth`` file the entries ``model``, ``net`` or ``state_dict`` are understood, and a plain state dict.
    The prefixes ``module.`` (of parallel training) and ``backbone.`` are dropped. So are ``auxiliary`` entries, where
    the weights are under ``net`` or have the prefix ``backbone.``, or where the others are a whole benchmark network.

    Raises:
        CheckpointError: missing, damaged, or asking for code to be executed.
    """
    try:
        content = read_limited(path, MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from None
    if path.suffix == ".safetensors":
        try:
            state = load_safetensors(content)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a complete safetensors file ({error}); fetch or train it again"
            ) from None
        header = int.from_bytes(content[:8], "little")
        return state, _metadata(content[8 : 8 + header])
    if content.startswith(_MAGIC):
        raise CheckpointError(
            f"{path} is what --resume continues a run from, not a file of weights; give the folder of a finished run"
        )
    if _is_safetensors(content):
        raise CheckpointError(
            f"{path} is a safetensors file of another name; rename it to {path.with_suffix('.safetensors').name}"
        )
    state = _state_dict(load_pth(content, str(path), numpy=True), path)
    # Views can repeat the same few numbers without end.
    if sum(value.numel() * value.element_size() for value in state.values()) > 2 * len(content):
        raise CheckpointError(f"{path} is refused: its tensors are larger than the file; ask for another one")
    return state, {}


def load_into(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly.

    Raises:
        CheckpointError: keys or shapes differ; names the architecture that does fit, if one does.
    """
    wanted = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    # Files from before torch 0.4.1 have no batch counters; torch fills them in.
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in given and key not in counters]
    unexpected = sorted(
        given.keys() - wanted.keys()
    )  # files are read in an order that differs between processes
    wrong = [key for key in wanted if key in given and given[key] != wanted[key]]
    if missing or unexpected or wrong:
        difference = (
            f"{wrong[0]} has shape {given[wrong[0]]} instead of {wanted[wrong[0]]}"
            if wrong
            else f"{len(missing)} entries missing ({', '.join(missing[:2])}), {len(unexpected)} unexpected "
            f"({', '.join(unexpected[:2])})"
        )
        fitting = fitting_architectures(state)
        advice = f"it fits {' or '.join(fitting)}" if fitting else "it fits no network of `itrd models`"
        name = getattr(net, "arch", type(net).__name__)
        raise CheckpointError(f"{source} is not a checkpoint of {name}: {difference}; {advice}")
    absent = counters - given.keys()
    for key, value in state.items():
        if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f"{source}: {key} is no plain tensor of numbers; ask for a plain state dict"
            )
    # A plain dict carries no version metadata, so torch accepts absent counters and leaves them at zero.
    net.load_state_dict({**state, **{key: torch.tensor(0) for key in absent}}, strict=True)


def fitting_architectures(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the benchmark networks whose state dict has exactly these keys and shapes."""
    from itrd.models import create_model, list_models

    shapes = {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    found = []
    with torch.device("meta"):
        for name in list_models():
            net = create_model(name, num_classes=classes_in(state) or 100)
            own = {
                k: tuple(v.shape)
                for k, v in net.state_dict().items()
                if not k.endswith("num_batches_tracked")
            }
            if own == shapes:
                found.append(name)
    return found


def classes_in(state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of a benchmark network's checkpoint, if it can be told."""
    for key in ("fc.bias", "linear.bias", "classifier.bias", "classifier.0.bias"):
        if key in state and state[key].ndim == 1 and 0 < len(state[key]) <= MAX_CLASSES:
            return len(state[key])
    return None


def _is_safetensors(content: bytes) -> bool:
    """Whether a file begins as safetensors do: with the length of a header in JSON, and the header."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def _metadata(header: bytes) -> dict[str, str]:
    return {str(k): str(v) for k, v in json.loads(header).get("__metadata__", {}).items()}


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    entry = next((key for key in ("model", "net", "state_dict") if _is_mapping_in(loaded, key)), None)
    if entry is not None:
        loaded = loaded[entry]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds no weights (expected an entry 'model' or a state dict)")
    array = next((key for key, value in loaded.items() if isinstance(value, UnreadArray)), None)
    if array is not None:
        raise CheckpointError(f"{path}: {array} is an array of NumPy's, not a tensor; save tensors")
    state = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    # The outer wrapper's prefix comes first: module.backbone.conv1.weight.
    state = {key.removeprefix("module."): value for key, value in state.items()}
    wrapped = entry == "net" or any(key.startswith("backbone.") for key in state)
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    without = {key: value for key, value in state.items() if not key.startswith("auxiliary")}
    # Elsewhere they may belong to a network of the user's.
    if wrapped or (len(without) < len(state) and fitting_architectures(without)):
        state = without
    if not state:
        raise CheckpointError(f"{path} holds no weights (expected an entry 'model' or a state dict)")
    return state


def _is_mapping_in(loaded: Any, key: str) -> bool:
    return isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)


# --- full state of a run ---------------------------------------------------------------------------------


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a run's full state atomically, with its checksum inside; the previous one is kept beside it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    body = buffer.getvalue()
    header = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
    spare = path.with_name(f".{path.name}.previous{PARTIAL}")
    write_atomically(path, header + body, before_rename=lambda: _set_aside(path, spare))
    if spare.exists():
        os.replace(spare, _previous(path))
        sync_folder(path.parent)


def _set_aside(path: Path, spare: Path) -> None:
    """Give the latest state a second name, under which it outlives the coming of the next one.

    The next one is on the disk by now, and the one before the latest still has its name: at no moment are there
    fewer than two.
    """
    spare.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # there is none yet
        if not link(path, spare):  # for a moment only the previous name is there
            os.replace(path, _previous(path))


def has_state(path: Path) -> bool:
    """Whether a run has saved a state, the latest or the previous one."""
    return path.exists() or _previous(path).exists()


def load_state(path: Path) -> tuple[dict[str, Any], str | None]:
    """Read a run's full state, or the previous one if the latest is damaged.

    Returns:
        The state, and a message if the previous one had to be used.

    Raises:
        CheckpointError: neither is there and whole.
    """
    reasons = []
    for candidate in (path, _previous(path)):
        try:
            content = read_limited(candidate, MAX_BYTES)
        except OSError as error:
            reasons.append(f"{candidate.name}: {error.strerror}")
            continue
        body = content[_HEADER:]
        expected = content[len(_MAGIC) : _HEADER - 1]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).hexdigest().encode() != expected:
            reasons.append(f"{candidate.name}: checksum does not match")
            continue
        state = load_pth(body, str(candidate))
        if not isinstance(state, dict):
            raise CheckpointError(f"{candidate} holds no state of a run; start again in another folder")
        return state, f"{reasons[0]}; continuing from {candidate.name}" if reasons else None
    raise CheckpointError(
        f"no usable checkpoint in {path.parent} ({'; '.join(reasons)}); start again in another folder"
    )


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.prev{path.suffix}")

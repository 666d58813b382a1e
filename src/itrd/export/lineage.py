"""Where weights come from, as far as the files beside them tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from itrd.engine import zoo
from itrd.engine.checkpoint import read_weights
from itrd.errors import CheckpointError
from itrd.files import read_json

# Of a run's record: what a reader of the weights may want to know. Not its curve, and not its command line, which may
# name folders of the machine.
_KEPT = (
    *(
        "kind",
        "protocol",
        "track",
        "settings",
        "teacher",
        "student",
        "data",
        "parameters",
        "objective",
        "device",
    ),
    *("provenance", "deterministic", "compile", "finished", "seconds"),
)


# A path from the root, alone or behind the name of a network: resnet8:/a/b, timm:x@/a/b, timm:x (/a/b).
_ABSOLUTE = re.compile(r"(?:(?<=[:@(])|^)(?:/|[A-Za-z]:[\\/])[^)]+")

WEIGHTS = ("last", "best", "ema")  # that a run keeps: two epochs, and the moving average after the last one


def record_of(weights: Path) -> tuple[dict[str, Any], str] | None:
    """Find the record of the run that a file of weights is from.

    Args:
        weights: ``last.safetensors``, ``best.safetensors`` or ``ema.safetensors`` of a run folder, or one of the zoo.

    Returns:
        The record, as ``result.json`` has it, and which of its weights these are, ``last``, ``best`` or ``ema``; None
        if there is none, or it is not this file's.

    Raises:
        CheckpointError: the record is damaged.
    """
    if zoo.is_in_zoo(weights):
        return _from_card(zoo.read_card(weights)), "last"
    result = weights.with_name("result.json")
    which = weights.stem
    if weights.suffix != ".safetensors" or which not in WEIGHTS or not result.is_file():
        return None
    try:
        record = read_json(result)
        at = record["best" if which == "best" else "last"]
        test = at["ema" if which == "ema" else "test"]
        # What the weights say of themselves; a run without labelled test images measured nothing.
        key, said = ("top1", f"{test['top1']:.4f}") if test else ("epoch", str(at["epoch"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{result} is damaged; repeat the run with --resume, or export a copy of the weights without it"
        ) from None
    return (record, which) if read_weights(weights)[1].get(key) == said else None


def _from_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Write a card of the zoo like a record; the accuracy is that of the rounded weights, which these are."""
    accuracy = {"test": {"top1": card["top1"]}}
    kept = {key: card[key] for key in ("settings", "provenance") if key in card}
    return {"kind": "train", **kept, "data": {"name": card["data"]}, "last": accuracy}


def published(record: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Return the part of a record that goes with exported weights, without the folders of this machine.

    Args:
        record: as ``result.json`` has it.
        which: of its weights, ``last``, ``best`` or ``ema``.
    """
    kept = {key: record[key] for key in _KEPT if key in record}
    kept |= {name: found for name in WEIGHTS if (found := _measured(record, name))}
    return {"weights": which, **_without_folders(kept)}


def _measured(record: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Epoch and test accuracy of a run's weights; empty where it has none of this kind."""
    at = record.get("last" if which == "ema" else which, {})
    test = at.get("ema" if which == "ema" else "test")
    return {"test": test, **({"epoch": at["epoch"]} if "epoch" in at else {})} if test else {}


def _without_folders(value: Any) -> Any:
    """Shorten absolute paths to their last two parts, wherever they are."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str):
        return _ABSOLUTE.sub(lambda found: "/".join(PurePath(found[0]).parts[1:][-2:]), value)
    return value

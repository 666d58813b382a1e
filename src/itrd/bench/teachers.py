"""Teachers of a track: from a run folder into the zoo, and whether they are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from itrd.bench.cells import Cell
from itrd.bench.tracks import Track
from itrd.data.datasets import ImageDataset
from itrd.engine import zoo
from itrd.engine.device import resolve_device
from itrd.engine.evaluate import evaluate
from itrd.engine.networks import load_network
from itrd.engine.place import place_test
from itrd.files import sha256_of

if TYPE_CHECKING:
    from itrd.bench.runner import Options


def path_of(track: Track, arch: str, root: Path) -> Path:
    """File of a track's teacher in the zoo."""
    return root / f"{track.network_name(arch)}.safetensors"


def is_there(track: Track, arch: str, root: Path) -> bool:
    """Whether the zoo has a track's teacher, with its card."""
    path = path_of(track, arch, root)
    return path.is_file() and zoo.is_in_zoo(path)


def publish(
    track: Track, cell: Cell, folder: Path, data: ImageDataset, result: dict[str, Any], options: Options
) -> None:
    """Put the network of a teacher's finished run into the zoo, with a card.

    The card's ``top1`` is measured with the rounded weights: it is what the students' teacher has.
    """
    if is_there(track, cell.student, options.zoo):
        return
    weights = folder / "last.safetensors"
    network = load_network(str(weights))
    zoo.round_weights(network.net)
    card = {
        "arch": network.arch,
        "num_classes": network.num_classes,
        "data": network.data,
        **({"normalisation": data.normalisation} if data.normalisation != "dataset" else {}),
        "track": track.name,
        "seed": cell.seed,
        "last": result["last"]["test"],
        "best": {"epoch": result["best"]["epoch"], **result["best"]["test"]},
        "top1": measure(network.net, data, options.device),
        "precision": "float16 weights, float32 running statistics",
        "settings": result["settings"],
        "provenance": result["provenance"],
        "trained_sha256": sha256_of(weights),
    }
    zoo.write(track.network_name(cell.student), network.net, card, options.zoo)


def measure(net: torch.nn.Module, data: ImageDataset, device: str) -> float:
    """Top-1 accuracy in float32 on the test set, percent."""
    where = resolve_device(device)
    return evaluate(net.to(where), place_test(data, where), "fp32", finite=True)["top1"]

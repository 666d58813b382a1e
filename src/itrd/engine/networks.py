"""From what a user writes for a network to a network with weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from itrd.data.datasets import ImageDataset
from itrd.engine import hubs, zoo
from itrd.engine.checkpoint import MAX_CLASSES, classes_in, fitting_architectures, load_into, read_weights
from itrd.engine.config import TrainConfig
from itrd.engine.record import Result
from itrd.errors import CheckpointError, UserError
from itrd.files import read_json, sha256_of
from itrd.models import BENCHMARK_MODELS, create_model, list_models
from itrd.models.observe import last_linear
from itrd.seeds import derive

PUBLISHED = "save/models/{name}_vanilla/ckpt_epoch_240.pth"


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with weights, and where they come from.

    Attributes:
        net: the network; one that :func:`load_network` returns is in eval mode.
        arch: its name.
        num_classes: K.
        source: file, or ``"given"`` for a module passed in Python.
        sha256: checksum of the file; of a module given in Python, of its weights.
        data: name of the dataset it was trained on, where the file tells.
        normalisation: of the images it was trained on, ``dataset`` or ``imagenet``; None where that is not known.
        image_size: side of the images it was trained on; None where that is not known, or the dataset's own.
        reading: what else decides which of the data's images it was trained on, where its file tells
            (:func:`reading_of`).
        undivided: checksum of the images that were divided into its training and test images, where there were no test
            images and its file tells.
        class_names: in the order of its logits, where its file tells; otherwise empty.
        preprocessing: what images it expects, where a library says so.
    """

    net: nn.Module
    arch: str
    num_classes: int
    source: str
    sha256: str | None
    data: str | None
    normalisation: str | None = None
    preprocessing: hubs.Preprocessing | None = None
    image_size: int | None = None
    reading: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    undivided: str | None = None


# Settings of a reading that decide which images are for training and which for the test, and their types.
WHICH_IMAGES = {"val_fraction": float, "test_split": str, "image_column": str, "label_column": str}


def reading_of(data: ImageDataset) -> dict[str, Any]:
    """Return how a dataset was divided into training and test images, as far as settings decide it."""
    asked = {name: getattr(data.reading, name, None) for name in WHICH_IMAGES}
    if "val_fraction" not in data.facts:  # it has test images of its own
        del asked["val_fraction"]
    return {name: value for name, value in asked.items() if value is not None}


def load_network(spec: str) -> TrainedNetwork:
    """Load a trained network from a run folder, a file, ``NAME:FILE``, or by name, also of :mod:`itrd.engine.hubs`.

    A folder that `itrd export` wrote is taken for its ``model.safetensors``.

    A name is looked up in the zoo (:mod:`itrd.engine.zoo`) first, then among the published teachers' files under
    ``save/models``, then in the run folder that ``itrd train --model NAME`` leaves. A file of the zoo must be the one
    that its card describes.

    Raises:
        CheckpointError: missing, damaged, unsafe, or for another architecture.
        UserError: the architecture cannot be told from the file's name or content.
    """
    if hubs.is_hub(spec):
        return _of_library(hubs.build(spec, pretrained=True))
    arch, _, rest = spec.partition(":")
    in_zoo = zoo.find(spec)
    if arch in list_models() and rest:
        path = Path(rest)
    elif in_zoo is not None:
        arch, path = "", in_zoo
    elif spec in list_models():
        arch = spec
        places = [
            Path(PUBLISHED.format(name=spec)),
            Path("runs") / TrainConfig(model=spec).resolved().run_name(),
        ]
        found = [path for path in places if path.exists()]
        if not found:
            published = "fetch the published ones with `sh scripts/fetch_pretrained_teachers.sh`, "
            raise CheckpointError(
                f"no weights for {spec}: there is no {zoo.ZOO / spec}.safetensors, {places[0]} or {places[1]}; "
                f"{published if spec in BENCHMARK_MODELS else ''}train it with `itrd train --model {spec}`, "
                "or give a run folder"
            )
        path = found[0]
    else:
        arch, path = "", Path(spec)
        if not path.exists():
            hubs.check_prefix(spec)
    if path.is_dir():
        runs = sorted(path.glob("seed*/last.safetensors"))
        if runs and not (path / "last.safetensors").is_file():
            raise CheckpointError(f"{path} holds several runs; name one of them, as in {runs[0].parent}")
        if (path / "config.yaml").is_file() and not (path / "last.safetensors").is_file():
            raise CheckpointError(f"the run in {path} is not finished; continue it with --resume first")
        path = _weights_in(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give a run folder, a .pth or a .safetensors file")
    if path == in_zoo or zoo.is_in_zoo(path):
        zoo.read_card(path)
    state, metadata = read_weights(path)
    if metadata.get("format", "").startswith("itrd-packed"):
        raise CheckpointError(
            f"{path} is a binary network packed into bits, which is for inference alone: run it with "
            "itrd.export.packed.load_packed(), or give the weights that it was packed from"
        )
    state = zoo.single(state)
    arch = arch or metadata.get("arch") or architecture_from_path(path) or ""
    # hf: would fetch what the file names, so its user must name it.
    trained_here = arch.startswith(("timm:", "torchvision:"))
    said = metadata.get("arch")
    if said and arch == said and not trained_here and not hubs.is_hub(arch) and arch not in list_models():
        raise UserError(
            f"{path} holds the weights of a network of your own, {said}, which only your code can build: build it in "
            "Python, load the file into it (safetensors.torch.load_model), and pass the network itself"
        )
    if not trained_here and arch not in list_models():
        fitting = fitting_architectures(state)
        if fitting:
            choices = " or ".join(f"{name}:{path}" for name in fitting)
            raise UserError(
                f"{path} does not name its architecture; it fits {' or '.join(fitting)}: write {choices}"
            )
        raise UserError(
            f"cannot tell the architecture of {path}; write NAME:{path}, NAME from `itrd models`, or "
            + (f"{arch}@{path}" if hubs.is_hub(arch) else f"timm:NAME@{path} for a network of timm")
        )
    net: nn.Module
    if trained_here:
        num_classes = _classes_said(metadata, path)
        net = hubs.build(arch.partition("@")[0], num_classes).net
    else:
        num_classes = classes_in(state) or 100
        net = create_model(arch, num_classes)
    load_into(net, state, str(path))
    return TrainedNetwork(
        net.eval(), arch, num_classes, str(path), sha256_of(path), **_training_images(metadata, str(path))
    )


def _weights_in(folder: Path) -> Path:
    """Return the weights in the folder of a run, or in one that `itrd export` wrote."""
    last, exported = folder / "last.safetensors", folder / "model.safetensors"
    if last.is_file():
        return last
    try:
        about = read_json(folder / "config.json")
    except (OSError, ValueError):
        return last
    if not isinstance(about, dict) or "weights_sha256" not in about:  # other libraries have such a file, too
        return last
    if not exported.is_file():
        raise CheckpointError(
            f"{folder} is an export without {exported.name}; add it with `itrd export --format safetensors`, or give "
            "the folder of the run that was exported"
        )
    return exported


def _of_library(hub: hubs.HubNetwork) -> TrainedNetwork:
    said = _training_images(hub.metadata, hub.source)
    return TrainedNetwork(
        hub.net, hub.arch, hub.num_classes, hub.source, hub.sha256, preprocessing=hub.preprocessing, **said
    )


def _training_images(metadata: dict[str, str], source: str) -> dict[str, Any]:
    """What a file says of the images that its weights were trained on; .pth files and those of others say nothing."""
    size = metadata.get("image_size", "")
    return {
        "data": metadata.get("data"),
        # Ours say so unless it is the dataset's.
        "normalisation": metadata.get("normalisation", "dataset" if "data" in metadata else None),
        "image_size": int(size) if size.isdecimal() else None,
        "reading": _said(metadata, "reading", source, {}, _is_reading),
        "undivided": metadata.get("undivided"),
        "class_names": tuple(_said(metadata, "class_names", source, [], _are_names)),
    }


def _classes_said(metadata: dict[str, str], path: Path) -> int:
    said = metadata.get("num_classes", "")
    if not said.isdecimal() or not 0 < int(said) <= MAX_CLASSES:
        raise CheckpointError(f"{path} does not say how many classes it has; train it again")
    return int(said)


def _said(
    metadata: dict[str, str], key: str, source: str, default: Any, is_one: Callable[[Any], bool]
) -> Any:
    """Return what a file says in JSON, if it is what it should be."""
    try:
        said = json.loads(metadata[key]) if key in metadata else default
    except (ValueError, RecursionError):
        said = None
    if not is_one(said):
        raise CheckpointError(f"the {key} of {source} cannot be understood; train it again")
    return said


def _is_reading(said: Any) -> bool:
    return isinstance(said, dict) and all(
        type(value) is WHICH_IMAGES.get(name) for name, value in said.items()
    )


def _are_names(said: Any) -> bool:
    return isinstance(said, list) and len(said) <= MAX_CLASSES and all(isinstance(name, str) for name in said)


def architecture_from_path(path: str | Path) -> str | None:
    """Tell the architecture from the parent folder's name, as the original scripts do.

    The folder's name is split at "_": the first piece, or the first three if the first is ``wrn``.
    """
    pieces = Path(path).parent.name.split("_")
    name = "_".join(pieces[:3]) if pieces[0] == "wrn" else pieces[0]
    return name if name in list_models() else None


def misnumbered(network: TrainedNetwork, class_names: Sequence[str]) -> str | None:
    """Return a class that has another number for a network than in these names; other names alone are no matter."""
    numbers = {name: number for number, name in enumerate(network.class_names)}
    return next((name for i, name in enumerate(class_names) if numbers.get(name, i) != i), None)


def starting_network(
    name: str, num_classes: int, seed: int, class_names: Sequence[str] = ()
) -> TrainedNetwork:
    """Create a network to be trained; its fresh weights are a function of the seed.

    Args:
        name: as of :func:`check_name`.
        num_classes: K; where trained weights are for another number, the classifier gets fresh ones.
        seed: of the run.
        class_names: of the data; where trained weights of this package number them otherwise, the classifier gets fresh
            ones, too.

    Returns:
        The network, and where its weights come from: ``sha256`` is None where all are fresh; ``num_classes`` is the
        file's.

    Raises:
        CheckpointError: the weights are damaged, unsafe, not finite or of another network.
    """
    torch.manual_seed(derive(seed, "weights"))
    if hubs.is_hub(name):
        hub = hubs.build(name, num_classes)
        _check_finite(hub.net, hub.source)
        return replace(_of_library(hub), num_classes=hub.held_classes or num_classes)
    if ":" not in name:
        net = create_model(name, num_classes)
        return TrainedNetwork(net, name, num_classes, f"{name} (fresh)", None, None)
    trained = load_network(name)
    _check_finite(trained.net, trained.source)
    if trained.num_classes == num_classes and misnumbered(trained, class_names) is None:
        return trained
    net = create_model(trained.arch, num_classes)
    classifier = last_linear(net)
    state = trained.net.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    net.load_state_dict(kept, strict=False)
    return replace(trained, net=net)


def _check_weights_there(role: str, net: nn.Module) -> None:
    held = [*net.named_parameters(), *net.named_buffers()]
    lazy = next((name for name, value in held if is_lazy(value)), None)
    if lazy is not None:
        raise UserError(
            f"the {role} {type(net).__name__} has lazy modules, whose weights are not there yet ({lazy}); run one "
            "batch of images through it first"
        )
    meta = next((name for name, value in held if value.is_meta), None)
    if meta is not None:
        raise UserError(
            f"the {role} {type(net).__name__} is on the meta device, where weights have no values ({meta}); make room "
            "with to_empty(device='cpu') and load its weights with load_state_dict() first"
        )


def _check_finite(net: nn.Module, source: str) -> None:
    statistics = {k: v for k, v in net.named_buffers() if k.endswith(("running_mean", "running_var"))}
    for key, value in {**dict(net.named_parameters()), **statistics}.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"training cannot start from {source}: {key} has numbers that are not finite; use another file"
            )


def given_network(role: str, net: Any, *, names: bool = True) -> Any:
    """Return a network that is given in Python, or as text where its name, folder or file is given.

    Args:
        role: what an error calls it.
        net: what is given.
        names: whether text is accepted.

    Raises:
        UserError: it is neither, or a network without weights.
    """
    if isinstance(net, nn.Module):
        _check_weights_there(role, net)
        return net
    if names and isinstance(net, (str, os.PathLike)):
        return os.fspath(net)
    what, advice = type(net).__name__, ""
    if isinstance(net, type):
        what, advice = f"the class {net.__name__}", f"; make one with {net.__name__}(...)"
    elif isinstance(net, Result):
        advice = "; the trained network is its .student"
    elif isinstance(net, Mapping):
        advice = "; load weights into a network with load_state_dict() and give that"
    accepted = "a network (torch.nn.Module)" + ", or a name or path of one" * names
    raise UserError(f"the {role} must be {accepted}, not {what}{advice}")


def check_name(name: str) -> None:
    """Refuse a wrong name of a network to be trained before anything is read.

    Args:
        name: of a network of this package, or ``NAME:FILE`` or ``NAME:RUN_FOLDER`` with its first weights; or one of
            :mod:`itrd.engine.hubs`.

    Raises:
        UserError: there is no such network.
        CheckpointError: there is no such file.
    """
    if hubs.is_hub(name):
        hubs.check(name)
        return
    arch, colon, path = name.partition(":")
    if not arch:
        raise UserError(f"{name!r} names no network; `itrd models` lists those of this package")
    if "@" in name and name.partition("@")[0] in list_models():
        raise UserError(f"weights stand behind a colon here; write {name.replace('@', ':', 1)}")
    hubs.check_prefix(name)
    if arch not in list_models() and Path(name).exists():
        held = load_network(name).arch
        raise UserError(
            f"{name} holds weights of {held}; to train a network that starts from them, write "
            f"{held}{'@' if hubs.is_hub(held) else ':'}{name}"
        )
    with torch.device("meta"):
        create_model(arch if colon else name)
    if colon and (not path or not Path(path).exists()):
        raise CheckpointError(
            f"no weights at {path!r}; give {arch}:FILE or {arch}:RUN_FOLDER, or {arch} alone for fresh ones (a run "
            "that is resumed needs the file that it began with)"
        )

"""A network and everything that belongs to it, in one folder: ``itrd export``.

README.md            the model card
config.json          what the card says, for programs
model.safetensors    the weights, for this package and for whoever has the network's code
model.onnx           the network as an ONNX program, weights included
model.pt2            the network as a program of ``torch.export``, weights included
model.packed.safetensors   a binary network's weights in bits (:mod:`itrd.export.packed`)

One folder holds one network for images of one size, in any of these formats.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from itrd.data import describe_dataset, list_datasets, load_dataset
from itrd.engine.checkpoint import save_weights, sha256_of_weights
from itrd.engine.networks import WHICH_IMAGES, TrainedNetwork, given_network, load_network
from itrd.errors import DataError, RunFolderError, UserError
from itrd.export.card import model_card
from itrd.export.lineage import WEIGHTS, published, record_of
from itrd.export.programs import (
    Agreement,
    Classifier,
    compare,
    record_program,
    require_onnx,
    run_onnx,
    run_torch,
    write_onnx,
    write_torch,
)
from itrd.files import read_json, sha256_of, write_atomically, write_json
from itrd.models.base import name_of
from itrd.models.observe import examined

Format = Literal["safetensors", "onnx", "torch_export", "packed"]
FORMATS: tuple[str, ...] = get_args(Format)
CONFIG_FORMAT = 1
_NAMES = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "torch_export": "model.pt2",
    "packed": "model.packed.safetensors",
}
NORMALISED = "normalised pixels"
PIXELS = "pixels in [0, 1]"


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: of the file.
        agreement: how its logits compare with the network's; None for plain weights.
    """

    path: Path
    agreement: Agreement | None


def export_model(
    net: nn.Module,
    out: str | Path,
    format: Format = "safetensors",
    *,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalise: bool = False,
    opset: int | None = None,
    record: Mapping[str, Any] | None = None,
    which: str = "last",
    licence: str = "unknown",
    class_names: Sequence[str] = (),
) -> Exported:
    """Write a network, with a card that says where it comes from, into a folder.

    ``onnx`` and ``torch_export`` give programs that need nothing of this package, for any batch size and one image
    size, in float32; each is run and compared with the network before it is written. A folder that holds this very
    network in another format gets one more file.

    Args:
        net: any classifier; it is left as it is.
        out: the folder.
        format: ``safetensors``, ``onnx``, ``torch_export`` or ``packed``.
        image_shape: (C, H, W) of the images.
        mean: per channel, that the images are normalised with (default: what the record says).
        std: likewise.
        normalise: make the normalisation part of the program, which then takes pixels in [0, 1].
        opset: operator set of ONNX (default: the exporter's own).
        record: the run that the weights are from, as :attr:`itrd.engine.record.Result.record` has it; of a network with
            as many parameters.
        which: of the run's weights: ``last``, ``best``, or ``ema``, the moving average after the last epoch.
        licence: of the weights, as the Hugging Face Hub names licences.
        class_names: in the order of the logits (default: what the record says).

    Returns:
        The file, and how it compares.

    Raises:
        UserError: the network cannot be written in this form, or the settings do not fit together.
        RunFolderError: the folder holds something else.
    """
    _check(format, normalise, opset)
    if which not in WEIGHTS:
        raise UserError(f"which must be one of {', '.join(WEIGHTS)}, got {which!r}")
    if isinstance(net, (str, os.PathLike)):
        raise UserError(
            f"export_model() writes a network that is built, and {os.fspath(net)!r} names one; write that with "
            "itrd.export.export_trained(), or with `itrd export --model`"
        )
    given_network("network", net, names=False)
    parameters = sum(p.numel() for p in net.parameters())
    told = (record or {}).get("parameters", parameters)
    if told != parameters:
        warnings.warn(
            f"the record is of a network of {told:,} parameters, and {name_of(net)} has {parameters:,}: that is right "
            "if its batch norms were folded, say, and wrong if it is another network",
            stacklevel=2,
        )
    folder = Path(out)
    known = (record or {}).get("data", {})
    mean = known.get("mean") if mean is None else [float(x) for x in mean]
    std = known.get("std") if std is None else [float(x) for x in std]
    if normalise and (mean is None or std is None):
        raise UserError("cannot normalise inside the program without mean and std; give both")
    inside = (mean, std) if normalise and mean is not None and std is not None else None
    classifier = Classifier(net, inside)
    images = torch.zeros(2, *image_shape)
    with examined("network", classifier.net, images):
        num_classes = classifier(images).shape[1]
    about = {
        "format": CONFIG_FORMAT,
        "arch": name_of(net),
        "num_classes": num_classes,
        "class_names": list(class_names or known.get("class_names", ())),
        "parameters": parameters,
        "image_shape": list(image_shape),
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "weights_sha256": sha256_of_weights(classifier.net),
        "licence": licence,
        "record": None if record is None else published(record, which),
    }
    held = _files_held(folder, about)
    name = _NAMES[format]
    with tempfile.TemporaryDirectory() as workshop:
        draft = Path(workshop) / name
        agreement, said = _WRITERS[format](classifier, draft, about, opset)
        content = draft.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, content)
    entry = {"kind": format, "bytes": len(content), "sha256": sha256_of(folder / name), **said}
    entry["input"] = PIXELS if normalise else NORMALISED
    if agreement is not None:
        entry["compared"] = asdict(agreement)
    config = {**about, "files": {**held, name: entry}}
    write_json(folder / "config.json", config)
    write_atomically(folder / "README.md", model_card(config).encode())
    return Exported(folder / name, agreement)


def export_trained(
    model: str,
    out: str | Path,
    format: Format = "safetensors",
    *,
    size: int | None = None,
    normalise: bool = False,
    opset: int | None = None,
    licence: str = "unknown",
    data_root: str = "data",
) -> Exported:
    """Write a trained network that a file holds, see :func:`export_model`.

    Args:
        model: run folder, checkpoint, NAME:FILE, or a name, as :func:`itrd.engine.networks.load_network` takes it.
        out: the folder to be written.
        format: as there.
        size: height and width of the images (default: those of the dataset it was trained on).
        normalise: as there.
        opset: as there.
        licence: as there.
        data_root: folder that holds the datasets; looked into where the record does not tell mean and std.

    Raises:
        UserError: as there, or the size of the images is not known.
    """
    _check(format, normalise, opset)
    if size is not None and size < 1:
        raise UserError(f"size must be at least 1, got {size}")
    network = load_network(model)
    found = record_of(Path(network.source))
    record, which = found if found is not None else (_told(network), "last")
    data = (network.data or "").partition("[")[0]
    side = _side(record, data) if size is None else size
    if side is None:
        raise UserError(f"{network.source} does not tell the size of its images; give --size")
    channels = describe_dataset(data).image_shape[0] if data in list_datasets() else 3
    mean, std = _normalisation(record, data, network.normalisation, data_root, needed=normalise)
    return export_model(
        network.net,
        out,
        format,
        image_shape=(channels, side, side),
        mean=mean,
        std=std,
        normalise=normalise,
        opset=opset,
        record=record,
        which=which,
        licence=licence,
        class_names=network.class_names,
    )


def _told(network: TrainedNetwork) -> dict[str, Any] | None:
    """What a file without a record says of itself, written like one."""
    if network.data is None:
        return None
    said: dict[str, Any] = {"data": {"name": network.data}}
    if network.image_size is not None:
        said["data"]["image_size"] = network.image_size
    if network.normalisation is not None:
        said["settings"] = {"normalisation": network.normalisation}
    return said


def _check(format: str, normalise: bool, opset: int | None) -> None:
    if format not in FORMATS:
        raise UserError(f"no format {format!r}; choose one of {', '.join(FORMATS)}")
    if opset is not None and format != "onnx":
        raise UserError(f"--opset is a setting of ONNX; leave it out for {format}")
    if normalise and format not in ("onnx", "torch_export"):
        raise UserError(
            f"{format} holds weights alone, which cannot normalise; choose onnx or torch_export, or leave out "
            "--normalise"
        )
    if format == "onnx":
        require_onnx()


def _side(record: Mapping[str, Any] | None, data: str) -> int | None:
    """Height and width of a network's images: from the record, or from what is known of the dataset."""
    size = (record or {}).get("data", {}).get("image_size")
    if size is None and data in list_datasets():
        return describe_dataset(data).image_shape[2]
    return size


def _normalisation(
    record: Mapping[str, Any] | None, data: str, normalisation: str | None, data_root: str, *, needed: bool
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and std of a network's images: from the record, or from the dataset if it is there."""
    known = (record or {}).get("data", {})
    if "mean" in known and "std" in known:
        return known["mean"], known["std"]
    if data not in list_datasets():
        return None, None
    try:
        dataset = load_dataset(data, data_root).normalised(normalisation or "dataset")
    except DataError:
        if needed:
            raise
        return None, None
    return dataset.mean, dataset.std


def _files_held(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Files of an earlier export of the same network into this folder.

    Raises:
        RunFolderError: it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; choose another folder with --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return {}
    try:
        held = read_json(folder / "config.json")
        same, files = held["weights_sha256"] == about["weights_sha256"], held["files"]
        _, height, width = held["image_shape"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"{folder} is not empty and holds no export; choose another folder with --out"
        ) from None
    if not same:
        raise RunFolderError(f"{folder} holds another network; choose another folder with --out")
    if [height, width] != about["image_shape"][1:]:  # the card tells one size
        raise RunFolderError(
            f"{folder} holds this network for images of {height}x{width} pixels; keep to that --size, "
            "or choose another folder with --out"
        )
    return {name: entry for name, entry in files.items() if (folder / name).is_file()}


# --- one writer a format: (classifier, file, what is known, operator set) -> (comparison, what else to say) ----------

_SAID_OF_DATA = {"data": "name", "image_size": "image_size", "undivided": "undivided"}
_Written = tuple[Agreement | None, dict[str, Any]]


def _metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of itself, in the words of a run folder's weights."""
    record = about["record"] or {}
    data, settings = record.get("data", {}), record.get("settings", {})
    said = {"arch": about["arch"], "num_classes": about["num_classes"]}
    said |= {key: data[name] for key, name in _SAID_OF_DATA.items() if data.get(name) is not None}
    # How the images were divided, so that no accuracy is measured on those of the training.
    reading = {name: (data if name == "val_fraction" else settings).get(name) for name in WHICH_IMAGES}
    if any(value is not None for value in reading.values()):
        said["reading"] = json.dumps({name: value for name, value in reading.items() if value is not None})
    if about["class_names"]:
        said["class_names"] = json.dumps(about["class_names"])
    normalisation = settings.get("normalisation", "dataset")
    if normalisation != "dataset":
        said["normalisation"] = normalisation
    return {key: str(value) for key, value in said.items()}


def _safetensors(classifier: Classifier, path: Path, about: Mapping[str, Any], opset: int | None) -> _Written:
    save_weights(path, classifier.net, _metadata(about))
    return None, {}


def _onnx(classifier: Classifier, path: Path, about: Mapping[str, Any], opset: int | None) -> _Written:
    shape = tuple(about["image_shape"])
    written = write_onnx(record_program(classifier, shape), path, opset, _metadata(about))
    return compare(run_onnx(path), classifier, shape), {"opset": written}


def _torch_export(
    classifier: Classifier, path: Path, about: Mapping[str, Any], opset: int | None
) -> _Written:
    shape = tuple(about["image_shape"])
    write_torch(record_program(classifier, shape), path)
    return compare(run_torch(path), classifier, shape), {"torch": str(torch.__version__)}


def _packed(classifier: Classifier, path: Path, about: Mapping[str, Any], opset: int | None) -> _Written:
    from itrd.export.packed import load_packed, save_packed
    from itrd.models.base import FeatureNet

    if not isinstance(classifier.net, FeatureNet):
        raise UserError(
            f"{about['arch']} cannot be packed: it is no binary network of `itrd models` (their names end in _1w1a)"
        )
    save_packed(classifier.net, path, _metadata(about))
    return compare(load_packed(path), classifier, tuple(about["image_shape"])), {}


_WRITERS: dict[str, Callable[[Classifier, Path, Mapping[str, Any], int | None], _Written]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torch_export": _torch_export,
    "packed": _packed,
}

"""The model card of exported weights: Markdown with the front matter of the Hugging Face Hub.

It says what is recorded. What is not recorded is left out, or said to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from itrd.data import list_datasets
from itrd.models import list_models

Config = Mapping[str, Any]
_WEIGHTS = {
    "last": "after the last epoch",
    "best": "best epoch, chosen on the test set",
    "ema": "moving average of the weights, after the last epoch",
}


_SHOWN_CLASSES = 20


def model_card(config: Config) -> str:
    """Write the card of an export from its ``config.json``."""
    record = config["record"] or {}
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(config, record), sort_keys=False, allow_unicode=True)}---",
        f"# {_title(config, record)}",
        _summary(config, record),
        "## Accuracy",
        _accuracy(config, record),
        "## Lineage",
        _table(_lineage(config, record)),
        "## Input",
        _input(config),
        "## Output",
        _output(config),
        "## Files",
        _files(config),
        "## Use",
        *_uses(config),
        "Licence of these weights: " + _licence(config),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Config, record: Config) -> dict[str, Any]:
    tags = ["image-classification", config["arch"]]
    if record.get("kind") == "distill":
        tags.insert(0, "knowledge-distillation")
    matter: dict[str, Any] = {
        "license": config["licence"],
        "library_name": "itrd",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "metrics": ["accuracy"],
    }
    data = _data_name(record)
    if data in list_datasets():
        matter["datasets"] = [data]
    elif data is not None and data.startswith("hf:"):
        matter["datasets"] = [data.removeprefix("hf:")]
    top1 = _top1(record, record.get("weights", "last"))
    if data is not None and top1 is not None:
        metric = {"type": "accuracy", "name": "top-1 on the test set, %", "value": round(top1, 2)}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": record["data"]["name"], "type": data},
            "metrics": [metric],
        }
        matter["model-index"] = [{"name": _title(config, record), "results": [result]}]
    return matter


def _title(config: Config, record: Config) -> str:
    title = str(config["arch"])
    if record.get("teacher"):
        title += f" distilled from {record['teacher']['arch']}"
    return title + (f" on {record['data']['name']}" if _data_name(record) else "")


def _summary(config: Config, record: Config) -> str:
    text = (
        f"An image classifier with {config['parameters']:,} parameters and {config['num_classes']} classes, "
    )
    if not record.get("kind"):
        return text + "of which no record of training was found when it was exported."
    how = "by knowledge distillation" if record["kind"] == "distill" else "on labels alone"
    return text + f"trained {how} with itrd."


def _accuracy(config: Config, record: Config) -> str:
    rows: list[list[str]] = []
    columns = 3 if config["num_classes"] > 5 else 2  # top-5 of five classes is always 100%
    exported = record.get("weights", "last")
    for which, said in _WEIGHTS.items():
        top1 = _top1(record, which)
        if top1 is not None:
            top5 = record[which]["test"].get("top5")
            here = " (these weights)" if which == exported else ""
            rows.append([f"{said}{here}", f"{top1:.2f}", "" if top5 is None else f"{top5:.2f}"][:columns])
    if not rows:
        unlabelled = record.get("data", {}).get("test") == 0
        return "Not measured: there were no labelled test images." if unlabelled else "Not recorded."
    heads = [["", "top-1, %", "top-5, %"][:columns], ["---"] * columns]
    lines = ["| " + " | ".join(row) + " |" for row in [*heads, *rows]]
    data = record["data"]
    size = f", {data['test']:,} images" if "test" in data else ""
    where = f"One run, measured on the test set of {data['name']}{size}."
    if "best" in record:
        where += " The last epoch is the result; the best one is optimistic."
    return "\n".join(lines) + f"\n\n{where}"


def _lineage(config: Config, record: Config) -> list[tuple[str, str]]:
    rows = [("Weights", f"{config['arch']}, sha256 of the tensors `{config['weights_sha256']}`")]
    if not record:
        return [*rows, ("Training", "not recorded")]
    teacher, provenance, data = record.get("teacher"), record.get("provenance", {}), record.get("data", {})
    if teacher:
        top1 = (teacher.get("test") or {}).get("top1")
        rows.append(("Teacher", teacher["arch"] + (f", {top1:.2f}% on the same test set" if top1 else "")))
        rows.append(("Teacher's file", f"{teacher['source']}, sha256 {_code(teacher.get('sha256'))}"))
    if "student" in record:
        start = record["student"]
        rows.append(("Started from", f"{start['source']}, sha256 {_code(start.get('sha256'))}"))
    if "objective" in record:
        rows.append(("Loss", _code(record["objective"])))
    if "protocol" in record:
        track = f", {record['track']} track" if "track" in record else ""
        rows.append(("Protocol", record["protocol"] + track))
    if record.get("settings"):
        rows.append(("Settings", _code(json.dumps(record["settings"], sort_keys=True))))
    if "name" in data:
        rows.append(("Data", data["name"]))
    if "fingerprint" in data:
        rows.append(("Data's fingerprint", f"sha256 {_code(data['fingerprint'])}"))
    if provenance:
        versions = ", ".join(
            f"{name} {provenance.get(name)}" for name in ("itrd", "torch", "numpy", "python")
        )
        rows.append(("Code", f"commit {_code(provenance.get('commit'))}; {versions}"))
        rows.append(("Hardware", str(provenance.get("hardware"))))
    if "finished" in record:
        rows.append(("Finished", record["finished"]))
    return rows


def _input(config: Config) -> str:
    channels, height, width = config["image_shape"]
    text = f"Images of {channels} channels, {height}x{width} pixels, float32, (batch, {channels}, {height}, {width}); "
    text += "pixel values divided by 255"
    if config["mean"] is None:
        return (
            text
            + ", normalised as in training. Mean and standard deviation were not known when it was exported."
        )
    mean, std = _numbers(config["mean"]), _numbers(config["std"])
    normalised = f"less the mean {mean}, divided by the standard deviation {std}"
    baked = [name for name, entry in config["files"].items() if entry["input"] != "normalised pixels"]
    if len(baked) == len(config["files"]):
        return f"{text} and nothing else. The program itself normalises them: {normalised}."
    text += f", {normalised}"
    if baked:
        return (
            text
            + f". Not for {', '.join(baked)}: there this is part of the program, which takes pixels in [0, 1]."
        )
    return text + "."


def _output(config: Config) -> str:
    text = f"Logits, float32, (batch, {config['num_classes']}); the largest is the class."
    names = config.get("class_names", [])
    if len(names) != config["num_classes"]:
        return f"{text} The names of the classes are not recorded."
    if len(names) > _SHOWN_CLASSES:
        return f"{text} Their names, in order, are `class_names` in `config.json`."
    shown = (" ".join(str(name).replace("`", "'").split()) for name in names)
    return f"{text} In order: {', '.join(map(_code, shown))}."


def _files(config: Config) -> str:
    lines = [
        "| file | bytes | sha256 | largest difference of a logit | same class |",
        "|---|---|---|---|---|",
    ]
    for name, entry in config["files"].items():
        compared = entry.get("compared")
        cells = ["", ""]
        if compared:
            cells = [
                f"{compared['largest_difference']:.2g}",
                f"{compared['same_class']} of {compared['images']}",
            ]
        lines.append(f"| {name} | {entry['bytes']:,} | `{entry['sha256']}` | {cells[0]} | {cells[1]} |")
    return (
        "\n".join(lines)
        + "\n\nDifferences are to the network that was exported, on random images in float32."
    )


def _uses(config: Config) -> list[str]:
    shape = ", ".join(map(str, config["image_shape"]))
    images = f"images = torch.rand(8, {shape})  # see Input"
    make = f'itrd.create_model("{config["arch"]}", num_classes={config["num_classes"]}).eval()'
    library = "timm" if config["arch"].startswith("timm:") else "itrd"
    if library == "timm":
        name = config["arch"].removeprefix("timm:")
        make = f'timm.create_model("{name}", num_classes={config["num_classes"]}).eval()'
    elif config["arch"] not in list_models():
        make = f"...  # the network whose weights these are, {config['arch']}, in eval mode"
    code = {
        "model.onnx": (
            "ONNX Runtime; nothing else is needed:",
            "import numpy, onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            f'images = numpy.random.rand(8, {shape}).astype("float32")  # see Input\n'
            '(logits,) = session.run(["logits"], {"images": images})',
        ),
        "model.pt2": (
            "PyTorch; nothing else is needed:",
            f'import torch\n\nnet = torch.export.load("model.pt2").module()\n{images}\nlogits = net(images)',
        ),
        "model.safetensors": (
            "The weights alone need the network's code:",
            f"import {library}, torch\nfrom safetensors.torch import load_file\n\n"
            f'net = {make}\nnet.load_state_dict(load_file("model.safetensors"))\n{images}\nlogits = net(images)',
        ),
        "model.packed.safetensors": (
            "A binary network with its weights in bits, for the CPU, with this package:",
            "import torch\nfrom itrd.export.packed import load_packed\n\n"
            f'net = load_packed("model.packed.safetensors")\n{images}\nlogits = net(images)',
        ),
    }
    shown = (code[name] for name in config["files"])
    return [f"{lead}\n\n```python\n{text}\n```" for lead, text in shown]


def _licence(config: Config) -> str:
    if config["licence"] != "unknown":
        return f"{config['licence']}."
    return "not stated. Whoever publishes them should state it, mindful of the teacher's and the data's."


def _data_name(record: Config) -> str | None:
    """Name of the whole dataset, of which the record may name a subset."""
    name = record.get("data", {}).get("name", "").partition("[")[0]
    return name or None


def _top1(record: Config, which: str) -> float | None:
    return record.get(which, {}).get("test", {}).get("top1")


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _code(text: str | None) -> str:
    return f"`{text}`" if text else "not recorded"


def _table(rows: list[tuple[str, str]]) -> str:
    def escaped(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {escaped(value)} |" for name, value in rows)])

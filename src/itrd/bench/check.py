"""Verification: records, teachers, and the figures of the documents. Every function returns the faults it found."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from itrd.bench.cells import Cell, cells_of, config_of
from itrd.bench.documents import DocumentError, refreshed
from itrd.bench.ledger import Ledger
from itrd.bench.likeness import differences, key_of, standard
from itrd.bench.record import RecordError, cell_of, columns, parse
from itrd.bench.tracks import list_tracks, load_track
from itrd.engine.zoo import ZOO, read_card
from itrd.errors import CheckpointError
from itrd.files import read_json
from itrd.methods import METHODS


def check_ledger(ledger: Ledger, zoo: Path = ZOO) -> list[str]:
    """Verify every file of a ledger; the zoo's cards tell which files are the same teacher, rounded."""
    rounded = _rounded_teachers(zoo)
    faults: list[str] = []
    cells: dict[Cell, Path] = {}
    teachers: dict[tuple[str, str], dict[str, Path]] = {}
    groups: dict[
        Cell, dict[str, Path]
    ] = {}  # a cell without its seed -> what its records are, and one of each
    if not ledger.root.is_dir():
        return [f"{ledger.root}: no such folder"]
    for path in sorted(ledger.root.rglob("*")):
        relative = path.relative_to(ledger.root)
        if path.is_dir() or any(part.startswith(".") for part in relative.parts):
            continue
        if path.suffix != ".json" or len(relative.parts) != 2:
            faults.append(f"{path}: not a record; the ledger holds TRACK/NAME.json and nothing else")
            continue
        try:
            record = parse(path)
        except RecordError as error:
            faults.append(str(error))
            continue
        wrong = check_record(record, path)
        faults += [f"{path}: {fault}" for fault in wrong]
        if wrong:
            continue
        cell = cell_of(record, path)
        known_track = standard(cell.track)
        wrong = known_track.faults(cell, record) if known_track is not None else []
        if wrong:
            faults.append(f"{path}: not a run of track {cell.track}: {'; '.join(wrong)}")
            continue
        groups.setdefault(replace(cell, seed=0), {}).setdefault(key_of(record), path)
        if cell in cells:
            faults.append(f"{path}: the same cell as {cells[cell]}")
        cells.setdefault(cell, path)
        if cell.teacher is not None:
            known = teachers.setdefault((cell.track, cell.teacher), {})
            sha256 = record["teacher"]["sha256"]
            known.setdefault(rounded.get(sha256, sha256), path)
    for (track, teacher), known in teachers.items():
        if len(known) > 1:
            shown = ", ".join(str(path) for path in list(known.values())[:3])
            faults.append(f"{track}: students of {teacher} had {len(known)} different teachers: {shown}")
    for kinds in groups.values():
        if len(kinds) > 1:
            shown = ", ".join(str(path) for path in list(kinds.values())[:3])
            faults.append(
                f"{shown}: runs of one cell that differ in more than the seed: {differences(kinds)}"
            )
    return faults + [f"{path}: changed; records are never rewritten" for path in _rewritten(ledger.root)]


def check_record(record: dict[str, Any], path: Path) -> list[str]:
    """Verify one record: schema, finite numbers, and that what it says of itself agrees."""
    fault = next(iter(sorted(_validator().iter_errors(record), key=lambda e: list(map(str, e.path)))), None)
    if fault is not None:
        where = ".".join(str(part) for part in fault.path) or "record"
        return [f"{where}: {fault.message[:200]}"]
    faults = [f"{name} is not finite" for name in _not_finite(record)]
    curve = record["curve"]
    if isinstance(curve, list):
        curve = columns(curve)
    length = len(curve["epoch"])
    uneven = [name for name, column in _columns(curve) if len(column) != length]
    wrong = [name for name, column in _columns(curve) if not all(_is_number(v, name) for v in column)]
    if uneven or wrong:
        return [*faults, *(f"curve: {name} has another length" for name in uneven)] + [
            f"curve: {name} holds something that is not a number" for name in wrong
        ]
    if curve["epoch"] != list(range(1, length + 1)):
        faults.append("curve: epochs are not 1, 2, 3, ...")
    if length != record["settings"]["epochs"]:
        faults.append(f"curve: {length} epochs, not the {record['settings']['epochs']} of its settings")
    if not all(0 <= value <= 100 for value in curve["test"]["top1"]):
        faults.append("curve: an accuracy outside of 0..100%")
    for name, expected in (("last", _row(curve, -1)), ("best", _best(curve, record["best"]["epoch"]))):
        said = {key: value for key, value in record[name].items() if key != "stage"}
        if said != expected:
            faults.append(f"{name} is not epoch {expected['epoch']} of its curve")
    return faults + _check_place(record, path)


def _check_place(record: Mapping[str, Any], path: Path) -> list[str]:
    """Verify that the record is what its folder, its file and its settings say."""
    faults = []
    cell, settings = cell_of(record, path), record["settings"]
    if cell.track != path.parent.name:
        faults.append(f"a record of track {cell.track} in the folder {path.parent.name}")
    if record["format"] != 1 and path.name != f"{cell.name}.json":
        faults.append(f"a record of {cell.name}")
    if (cell.teacher is None) != (record["kind"] == "train"):
        faults.append(f"cell and kind {record['kind']} contradict each other")
    if cell.seed != settings["seed"] or cell.student != settings.get("student", settings.get("model")):
        faults.append("cell and settings contradict each other")
    if cell.teacher is not None and cell.teacher != record["teacher"]["arch"]:
        faults.append("cell and teacher contradict each other")
    method = cell.method.partition("@")[0]
    if (
        cell.teacher is not None
        and method in METHODS
        and not re.search(rf"\*{method}\b", record["objective"])
    ):
        faults.append(f"called {cell.method}, and its objective {record['objective'][:200]} is another")
    label = _published_label(cell.track)
    if label and record["protocol"] != label:
        faults.append(f"not run with the published schedule: labelled {record['protocol']}, not {label}")
    return faults


@cache
def _published_label(name: str) -> str | None:
    """How the runs of a track that stands beside published numbers are labelled; None for other tracks."""
    if name not in list_tracks() or not (track := load_track(name)).published:
        return None
    return config_of(track, next(cells_of(track))).protocol()


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    schema = json.loads(files("itrd.bench").joinpath("record.schema.json").read_text(encoding="utf-8"))
    return Draft202012Validator(schema)


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of numbers too large to be one; NaN and Infinity do not even parse."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield name
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _not_finite(item, name)


def _columns(curve: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    for key, value in curve.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", column) for name, column in value.items())
        else:
            yield key, value


def _row(curve: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {
        key: {k: column[index] for k, column in value.items() if column[index] is not None}
        if isinstance(value, dict)
        else value[index]
        for key, value in curve.items()
    }


def _is_number(value: Any, name: str) -> bool:
    """Whether a column may hold this; a term of the loss need not be there in every epoch."""
    return type(value) in (int, float) or (value is None and name.startswith("train."))


def _best(curve: Mapping[str, Any], said: int) -> dict[str, Any]:
    """The epoch of the highest accuracy; of several, the one that is said, else the first.

    Early records hold accuracies that were summed up in floating point: of epochs that were equally good, the one that
    rounding favoured is their best.
    """
    top1 = curve["test"]["top1"]
    best = [i for i, value in enumerate(top1) if value == max(top1)]
    return _row(curve, said - 1 if said - 1 in best else best[0])


def _rewritten(root: Path) -> list[str]:
    """Records of the last commit that are different or gone now; none where there is no version control."""
    command = ["git", "-C", str(root), "diff", "--name-only", "--diff-filter=MD", "HEAD", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _rounded_teachers(zoo: Path) -> dict[str, str]:
    """Checksum of a network as it was trained -> checksum of the same network in the zoo."""
    found = {}
    for path in zoo.rglob("*.json"):
        try:
            card = read_json(path)
            found[str(card["trained_sha256"])] = str(card["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # check_zoo complains
    return found


def check_zoo(zoo: Path) -> list[str]:
    """Verify the checksum of every network of a zoo; accuracies are measured by the slow tests."""
    faults = []
    for path in sorted(zoo.rglob("*.safetensors")):
        try:
            read_card(path)
        except CheckpointError as error:
            faults.append(str(error))
    faults += [
        f"{card}: a card without its network"
        for card in sorted(zoo.rglob("*.json"))
        if not card.with_suffix(".safetensors").is_file()
    ]
    return faults


def check_documents(documents: Sequence[Path], ledger: Ledger, zoo: Path) -> list[str]:
    """Verify that the figures between the markers of each document are what the ledger says."""
    faults = []
    for path in documents:
        try:
            text = path.read_text(encoding="utf-8")
            if refreshed(text, ledger, zoo) != text:
                faults.append(
                    f"{path}: figures differ from the ledger; `itrd report --update {path}` mends it"
                )
        except (DocumentError, OSError, UnicodeDecodeError) as error:
            faults.append(f"{path}: {error}")
    return faults

"""Whether records are what they stand for: runs of their track's settings, alike but for the seed.

Tables take all runs of a teacher, a student and a method together. So these runs may differ in the seed, in where and
how they ran, and in nothing else; and what a track's file says must be what its records did.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from itrd.bench.cells import Cell, config_of
from itrd.bench.record import rounded
from itrd.bench.tracks import ALONE, TEACHER, Track, list_tracks, load_track
from itrd.data import list_datasets
from itrd.engine.config import INCIDENTAL, DistillConfig, RunConfig, TrainConfig
from itrd.errors import UserError
from itrd.methods import create_objective
from itrd.recipes import Pair

# The cell says some of these, the objective and the content of the data the others, however they are spelled.
_SAID_ELSEWHERE = frozenset({"seed", "model", "student", "teacher", "method", "ce_weight", "data"})
_LONGEST = 60  # of a value that is shown


def essence(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decided a run's result, but for its cell and its teacher's weights.

    Settings that a record does not mention are younger than it and had their default. It need not be a valid record.
    """
    kind = TrainConfig if record.get("kind") == "train" else DistillConfig
    student, data = record.get("student"), record.get("data")
    return {
        **_settings(kind, record["settings"]),
        "objective": _canonical(str(record.get("objective"))),
        "first weights": student.get("sha256") if isinstance(student, dict) else None,
        "content of the data": data.get("fingerprint") if isinstance(data, dict) else None,
    }


def key_of(record: Mapping[str, Any]) -> str:
    """A record's essence as text: equal for runs that may be taken together."""
    return json.dumps(essence(record), sort_keys=True)


def differences(keys: Iterable[str]) -> str:
    """In words what several texts of :func:`key_of` differ in: ``epochs (2, 3), objective (...)``."""
    found: dict[str, dict[str, None]] = {}
    essences = [json.loads(key) for key in keys]
    for name in dict.fromkeys(name for one in essences for name in one):
        found[name] = dict.fromkeys(_shown(one.get(name)) for one in essences)
    return ", ".join(f"{name} ({', '.join(values)})" for name, values in found.items() if len(values) > 1)


class Standard:
    """What the records of a track have to be.

    Args:
        track: its definition.
    """

    def __init__(self, track: Track) -> None:
        self._track = track
        self._known: dict[Cell, dict[str, Any] | None] = {}

    def faults(self, cell: Cell, record: Mapping[str, Any]) -> list[str]:
        """Say what of a record is not as the track has it: ``epochs 1, not 12``."""
        group = dataclasses.replace(cell, seed=0)
        if group not in self._known:
            self._known[group] = self._expected(group)
        expected = self._known[group]
        if expected is None:
            return ["no such cell"]
        found = essence(record)
        if self._track.data in list_datasets():
            asked, data = record["settings"].get("data"), record.get("data")
            # Without the sizes of subsets, as in digits[train=60,test=40]: the settings say them.
            read = str(data.get("name")).partition("[")[0] if isinstance(data, dict) else None
            found["data"] = read if asked == self._track.data else asked
            expected = {**expected, "data": self._track.data}
        return [
            f"{name} {_shown(found.get(name))}, not {_shown(value)}"
            for name, value in expected.items()
            if found.get(name) != value
        ]

    def _expected(self, cell: Cell) -> dict[str, Any] | None:
        """What the track says of a cell, whatever its seed; None if it has no such cell."""
        track = self._track
        if cell.method == TEACHER:
            there = any(cell.student == pair.teacher for pair in track.pairs)
        elif cell.method == ALONE:
            there = ALONE in track.methods() and any(cell.student == pair.student for pair in track.pairs)
        else:
            pair = Pair(cell.teacher or "", cell.student)
            there = pair in track.pairs and cell.method in track.methods()
            there = there and track.loss(cell.method, pair) is not None
        if not there or (cell.teacher is None) != (cell.method in (TEACHER, ALONE)):
            return None
        config = config_of(track, cell).resolved()
        loss, weight = (
            (config.method, config.ce_weight) if isinstance(config, DistillConfig) else (ALONE, None)
        )
        return {
            **_settings(type(config), json.loads(json.dumps(config.identity()))),
            "objective": create_objective(loss, weight).describe(),
        }


@cache
def standard(name: str) -> Standard | None:
    """The standard of a track of this package; None for others, which are not known here."""
    return Standard(load_track(name)) if name in list_tracks() else None


def _settings(kind: type[RunConfig], said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that count, those that are not mentioned at their default, with a record's digits."""
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    left_out = INCIDENTAL | _SAID_ELSEWHERE
    return {name: rounded(value) for name, value in {**defaults, **said}.items() if name not in left_out}


@cache
def _canonical(objective: str) -> str:
    """An objective as this version writes it: one that an older version wrote may lack younger settings."""
    try:
        return create_objective(objective).describe()
    except UserError:
        return objective  # of a method that is not known here


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

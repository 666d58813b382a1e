"""Tracks: what a benchmark trains, as data.

The tracks of this package are YAML files in ``tracks/``; a file of one's own works like them. Its keys are the
fields of :class:`Track`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.yaml_text import load_yaml
from itrd.errors import UnknownNameError, UserError
from itrd.methods import list_methods
from itrd.recipes import PAIRS, TABLE_METHODS, Pair, recipe

ALONE = "none"  # the method of a student trained alone
TEACHER = "teacher"  # stands for the method in a teacher's cell


# Settings of distilled runs alone.
DISTILLATION = frozenset(f.name for f in dataclasses.fields(DistillConfig)) - {
    f.name for f in dataclasses.fields(TrainConfig)
}
# What the cell says, or the command that runs it.
_NOT_OF_A_TRACK = frozenset(
    {"data", "model", "teacher", "student", "method", "teacher_logits", "teacher_table", "fill_table"}
    | {"out", "resume", "device", "data_root", "progress", "profile", "control", "seeds"}
)


@dataclass(frozen=True)
class Wave:
    """Cells of equal priority: these methods with these seeds, on every pair."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Track:
    """What is trained, and in which order.

    Attributes:
        name: folder of its records; letters, digits, ``-`` and ``_``.
        title: for people.
        note: what to know before comparing its numbers.
        data: dataset.
        pairs: teachers and students; in the file a list, or ``published`` for those of the published tables.
        losses: ``recipes`` for the published settings of each cell, ``registry`` for the methods' defaults.
        loss_of: a loss for single methods instead.
        zoo: folder of its teachers inside the zoo, named as a track is; ``.`` for the zoo itself.
        settings: of every run; those of distillation alone are left out where there is no teacher.
        teacher: further settings of teachers; ``seed`` among them.
        student: further settings of students, as ``settings``.
        waves: methods and seeds in order of priority; in the file, the methods ``others`` are all that no
            wave names.
    """

    name: str
    title: str
    data: str
    pairs: tuple[Pair, ...]
    waves: tuple[Wave, ...]
    note: str = ""
    losses: Literal["recipes", "registry"] = "registry"
    loss_of: dict[str, str] = field(default_factory=dict)
    zoo: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        """Whether its numbers may stand beside the published ones."""
        return self.pairs == PAIRS and self.losses == "recipes"

    def network_name(self, arch: str) -> str:
        """Name of a teacher of this track in the zoo."""
        return arch if self.zoo == "." else f"{self.zoo or self.name}/{arch}"

    def loss(self, method: str, pair: Pair) -> str | None:
        """The loss of a method on a pair, or None where the method cannot be."""
        if method in self.loss_of:
            return self.loss_of[method]
        if self.losses == "registry":
            return method
        name, _, variant = method.partition("@")
        try:
            return recipe(name, *pair, variant=variant or "published").loss
        except UserError:
            return None

    def methods(self) -> list[str]:
        """All methods of its waves, in the order of their first wave."""
        return list(dict.fromkeys(method for wave in self.waves for method in wave.methods))


def list_tracks() -> list[str]:
    """Names of the tracks that come with the package."""
    return list(_of_the_package())


@cache
def _of_the_package() -> list[str]:
    return sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml"))


def load_track(name: str) -> Track:
    """Return a track of the package by name, or one of a YAML file by its path.

    Raises:
        UserError: no such track, or not a track.
    """
    is_path = name.endswith((".yaml", ".yml"))
    source: Any = Path(name) if is_path else _folder() / f"{name}.yaml"
    if not is_path and name not in list_tracks():
        raise UnknownNameError(
            "track", name, list_tracks(), hint=f"known: {', '.join(list_tracks())}; or a .yaml file"
        )
    try:
        track = _track(load_yaml(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read the track {name}: {error.strerror}") from None
    except (yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{name} is not a track: {' '.join(str(error).split())}") from None
    if is_path and track.name in list_tracks():  # its records would lie among those of the package's
        raise UserError(f"{name} has the name of the package's track {track.name}; give it another name")
    return track


def _folder() -> Any:
    return files("itrd.bench").joinpath("tracks")


def _track(content: dict[str, Any]) -> Track:
    content = dict(content)
    name = content["name"]
    if not _is_plain(name):
        raise ValueError(f"a track's name has letters, digits, - and _, not {name!r}")
    zoo = content.get("zoo", "")
    if zoo not in ("", ".") and not _is_plain(zoo):
        raise ValueError(
            f"zoo is a folder inside the zoo, of letters, digits, - and _, or . alone, not {zoo!r}"
        )
    pairs = content["pairs"]
    content["pairs"] = PAIRS if pairs == "published" else tuple(Pair(*pair) for pair in pairs)
    if content.get("losses", "registry") not in ("recipes", "registry"):
        raise ValueError("losses must be recipes or registry")
    everything = [ALONE, *TABLE_METHODS] if content.get("losses") == "recipes" else list_methods()
    # The same "others" in every wave: what the waves with names leave over.
    named = {m for wave in content["waves"] if wave["methods"] != "others" for m in wave["methods"]}
    waves = []
    for wave in content["waves"]:
        methods = wave["methods"]
        if methods == "others":
            methods = [m for m in everything if m not in named]
        waves.append(Wave(tuple(methods), tuple(int(seed) for seed in wave["seeds"])))
    content["waves"] = tuple(waves)
    track = Track(**content)
    _check_settings(track)
    return track


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum()


def _check_settings(track: Track) -> None:
    known = {f.name for cls in (TrainConfig, DistillConfig) for f in dataclasses.fields(cls)}
    for name in ("settings", "teacher", "student"):
        for key in getattr(track, name):
            if key not in known:
                raise ValueError(f"no run has a setting {key!r}")
            if key in _NOT_OF_A_TRACK or (key == "seed" and name != "teacher"):
                raise ValueError(
                    f"{key} is no setting of a track: the cell or the command says it; leave it out of {name}"
                )
            if name == "teacher" and key in DISTILLATION:
                raise ValueError(f"a teacher's run has no setting {key!r}; it belongs into student")
    for wave in track.waves:
        for method in wave.methods:
            name = method.partition("@")[0]
            if method not in track.loss_of and name not in list_methods():
                raise UnknownNameError("method", method, list_methods())

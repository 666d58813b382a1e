"""The folder of one run: who may use it, and what it holds.

config.yaml           the settings, as `--config` reads them
inputs.json           checksums of what the settings only name: data and teacher
checkpoint.pt         full state for --resume; checkpoint.prev.pt is the one before
metrics.jsonl         one line per epoch
events.out.tfevents*  TensorBoard
last.safetensors      weights after the last epoch: the result
best.safetensors      weights of the epoch with the best test accuracy
ema.safetensors       moving average of the weights after the last epoch, where one was asked for
result.json           settings, provenance, curve, last and best epoch
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from os.path import realpath
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from itrd.data import list_datasets
from itrd.engine.config import LIBRARIES, RunConfig
from itrd.engine.yaml_text import MAX_BYTES, load_yaml
from itrd.errors import RunFolderError, UserError
from itrd.files import PARTIAL, read_json, read_limited, remove_partial_files, write_atomically, write_json
from itrd.methods import create_objective
from itrd.models import list_models


class RunFolder:
    """A run's folder, locked while it is open.

    Nothing is created before :meth:`open`. A folder that holds another run, or this one without ``resume``,
    is refused before anything is written.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self._config = config
        self._lock: FileLock | None = None
        self.inputs: dict[str, str] = {}  # checksums of data and teacher; to be set before open()

    checkpoint = property(lambda self: self.path / "checkpoint.pt")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    result = property(lambda self: self.path / "result.json")
    last = property(lambda self: self.path / "last.safetensors")
    best = property(lambda self: self.path / "best.safetensors")
    settings = property(lambda self: self.path / "config.yaml")
    inputs_file = property(lambda self: self.path / "inputs.json")

    def check(self) -> None:
        """Refuse a folder that cannot be used, without touching it.

        Raises:
            RunFolderError: it holds another run, is not empty, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; choose another folder with --out")
        occupied = self.path.is_dir() and any(
            p.name != ".lock" and p.suffix != PARTIAL for p in self.path.iterdir()
        )
        if occupied:
            if not self.settings.is_file():
                raise RunFolderError(
                    f"{self.path} is not empty and holds no run; choose another folder with --out"
                )
            self._check_same_run()
        elif self._config.resume:
            raise RunFolderError(
                f"nothing to resume: {self.path} holds no run; leave out --resume to start one"
            )
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not os.access(parent, os.W_OK) or not parent.is_dir():
            raise RunFolderError(f"cannot write into {parent}; choose another folder with --out")

    def _check_same_run(self) -> None:
        try:
            held = load_yaml(read_limited(self.settings, MAX_BYTES).decode())
            if not isinstance(held, dict):
                raise yaml.YAMLError("no settings")
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            raise RunFolderError(f"{self.settings} is damaged; choose another folder with --out") from None
        mine = _plain(self._config.identity())
        verb, trained = ("train", "model") if "student" in mine else ("distill", "student")
        if trained in held:
            raise RunFolderError(
                f"{self.path} holds a run of `itrd {verb}`; choose another folder with --out"
            )
        # A setting that one side does not mention has its default there.
        defaults = {f.name: f.default for f in dataclasses.fields(self._config)}
        theirs = {key: held.get(key, default) for key, default in defaults.items()}
        ours = {key: mine.get(key, default) for key, default in defaults.items()}
        different = [key for key in defaults if not _same(key, theirs[key], ours[key])]
        if different:
            shown = ", ".join(f"{key} {_short(theirs[key])} not {ours[key]!r}" for key in different[:3])
            raise RunFolderError(f"{self.path} holds another run ({shown}); choose another folder with --out")
        if not self._config.resume:
            raise RunFolderError(
                f"{self.path} already holds this run; continue it with --resume or choose another folder with --out"
            )

    def open(self) -> RunFolder:
        """Create the folder, lock it, and write the settings.

        Raises:
            RunFolderError: not usable, or another process is using it.
        """
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
            self.check()  # another process may have started a run here meanwhile
            self._check_inputs()
            remove_partial_files(self.path)
            content = yaml.safe_dump(_plain(self._config.identity()), sort_keys=False)
            write_atomically(self.settings, content.encode())  # first: they say that the folder is a run's
            write_json(self.inputs_file, self.inputs)
        except Timeout:
            raise RunFolderError(
                f"another process is using {self.path}; wait for it or choose another --out"
            ) from None
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            raise RunFolderError(
                f"cannot write into {self.path}: {error.strerror}; choose another --out"
            ) from None
        return self

    def _check_inputs(self) -> None:
        try:
            held = read_json(self.inputs_file)
            changed = [name for name, digest in self.inputs.items() if held.get(name, digest) != digest]
        except FileNotFoundError:
            return
        except (ValueError, AttributeError):
            raise RunFolderError(f"{self.inputs_file} is damaged; choose another folder with --out") from None
        if changed:
            raise RunFolderError(
                f"the {' and the '.join(changed)} of the run in {self.path} changed since it began; "
                "restore it, or choose another folder with --out"
            )

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()


# Settings that may name a file or folder. What is there is compared by checksum (inputs.json).
_PLACES = frozenset({"data", "teacher", "teacher_logits", "model", "student"})


def _same(key: str, held: Any, given: Any) -> bool:
    """Whether two values of a setting mean the same: of a path and of a loss, other spellings do."""
    if held == given or not (isinstance(held, str) and isinstance(given, str)):
        return held == given
    if key == "method":
        try:
            return create_objective(held).describe() == create_objective(given).describe()
        except UserError:  # a method of the user's, or a name of another version
            return False
    if key not in _PLACES:
        return False
    first, second = (re.split("[:@]", text) for text in (held, given))  # NAME:FILE and LIBRARY:NAME@FILE, too
    return len(first) == len(second) and all(map(_same_place, first, second))


def _same_place(held: str, given: str) -> bool:
    """Whether two paths lead to one place, or the first leads nowhere from here: then the checksums decide."""
    names = {*list_models(), *list_datasets(), *LIBRARIES}
    if held in names or given in names:  # also where a folder has the same name
        return held == given
    return realpath(held) == realpath(given) or (not os.path.exists(held) and os.path.exists(given))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))

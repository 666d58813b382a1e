"""The state of a run: where it is, what it has drawn and learned, saved and restored as a whole."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from itrd.data.datasets import ImageDataset
from itrd.engine.checkpoint import has_state, load_state, save_state, save_weights
from itrd.engine.folder import RunFolder
from itrd.engine.metrics import Meter
from itrd.engine.networks import reading_of
from itrd.engine.optimizer import load_optimizer
from itrd.engine.record import Epoch
from itrd.errors import CheckpointError
from itrd.models.base import name_of

if TYPE_CHECKING:
    from itrd.engine.trainer import Trainer


# What the parts of a state raise that is whole but was made for another run, or by somebody else.
MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


class Position:
    """What comes next: stage (from 0), epoch (from 1), step (from 0), and what this epoch has summed up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stage = 0
        self.epoch = 1
        self.meter = Meter()
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.step = 0
        self.seconds = 0.0
        self.meter.reset()

    def next_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch += 1
        self._start_epoch()

    def next_stage(self) -> None:
        """Go to the beginning of the next stage."""
        self.stage += 1
        self.epoch = 1
        self.meter = Meter()  # other terms
        self._start_epoch()

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step + 1}"

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain values and tensors."""
        state = {key: getattr(self, key) for key in ("stage", "epoch", "step", "seconds")}
        return {**state, "meter": self.meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            ValueError: no such position exists.
        """
        for key, least in (("stage", 0), ("epoch", 1), ("step", 0)):
            if type(state[key]) is not int or state[key] < least:
                raise ValueError(f"{key} {state[key]!r}")
        for key in ("stage", "epoch", "step", "seconds"):
            setattr(self, key, state[key])
        self.meter = Meter()
        self.meter.load_state_dict(state["meter"], self._device)


# --- random generators -----------------------------------------------------------------------------------


def seed_generators(seed: int) -> None:
    """Seed every global generator that a network, a method or a library may draw from."""
    torch.manual_seed(seed)  # of all devices
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is the one to be seeded


def generators(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators: torch's on the CPU and the device, Python's, NumPy's."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python_rng": random.getstate(),
        "numpy_rng": {**numpy, "state": {**numpy["state"], "key": key}},
    }


def restore_generators(state: dict[str, Any], device: torch.device) -> None:
    """Set the global generators to saved states."""
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"], device)
    if "python_rng" in state:  # states of the first versions have only torch's
        random.setstate(state["python_rng"])
        numpy = state["numpy_rng"]
        key = numpy["state"]["key"].numpy().astype(np.uint32)
        np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002


# --- the whole run ---------------------------------------------------------------------------------------


def save_run(trainer: Trainer, folder: RunFolder, optimizer: torch.optim.Optimizer | None) -> None:
    """Save everything that the rest of the run depends on; ``optimizer`` is None between stages."""
    state = {
        "position": trainer.position.state_dict(),
        "task": trainer.task.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        # As text: what reads a checkpoint limits the number of values in it.
        "history": json.dumps([asdict(e) for e in trainer.history]),
        "first_stages": json.dumps([asdict(e) for e in trainer.first_stages]),
        "best": trainer.best.epoch if trainer.best else None,
        "average": None if trainer.average is None else trainer.average.state_dict(),
        "provenances": trainer.provenances,
        **generators(trainer.device),
    }
    save_state(folder.checkpoint, state)


class Saved(NamedTuple):
    """The saved state of a run.

    Attributes:
        state: what :func:`save_run` saved.
        source: the file.
        complaint: what was amiss with it, if anything.
    """

    state: dict[str, Any]
    source: str
    complaint: str | None


def saved_run(folder: RunFolder) -> Saved | None:
    """Read the saved state of a run; None if it was stopped before the first one was written.

    Raises:
        CheckpointError: it is damaged.
    """
    if not has_state(folder.checkpoint):
        return None
    state, complaint = load_state(folder.checkpoint)
    return Saved(state, str(folder.checkpoint), complaint)


def restore_run(trainer: Trainer, saved: Saved, stages: int) -> Saved:
    """Go back to a saved state; return what remains to be restored, the optimiser's part.

    Raises:
        CheckpointError: it is not one of this run.
    """
    state = saved.state
    with _fitting(saved):
        trainer.task.load_state_dict(state["task"])
        if trainer.average is not None:
            trainer.average.load_state_dict(state["average"])
        trainer.position.load_state_dict(state["position"])
        trainer.history, trainer.first_stages = _epochs(state["history"]), _epochs(state["first_stages"])
        trainer.provenances = list(state.get("provenances", []))
        trainer.best = next((e for e in trainer.history if e.epoch == state["best"]), None)
        position = trainer.position
        through = position.epoch - 1 if position.stage == stages - 1 else 0
        if position.stage >= stages or len(trainer.history) != through or (through and trainer.best is None):
            raise ValueError(f"{position} with {len(trainer.history)} epochs behind it")
        restore_generators(state, trainer.device)
        return saved._replace(state={"optimizer": state["optimizer"]})


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Saved) -> None:
    """Set an optimiser to its saved state; leave it alone where there is none, between stages.

    Raises:
        CheckpointError: it is one of other parameters.
    """
    if saved.state["optimizer"] is not None:
        with _fitting(saved):
            load_optimizer(optimizer, saved.state["optimizer"])


def _epochs(saved: str | list[dict[str, Any]]) -> list[Epoch]:
    """Read saved epochs; states of the first versions have a list of them."""
    return [Epoch(**epoch) for epoch in (json.loads(saved) if isinstance(saved, str) else saved)]


@contextmanager
def _fitting(saved: Saved) -> Iterator[None]:
    try:
        yield
    except MISFITS as error:
        # torch lists all mismatches, one kind a line, below a heading; a line may name every tensor.
        lines = (str(error) or type(error).__name__).splitlines()[:2]
        reason = shorten(" ".join(lines if lines[0].endswith(":") else lines[:1]), 200, placeholder=" ...")
        raise CheckpointError(f"{saved.source} does not fit this run: {reason}") from None


def save_student(folder: RunFolder, which: str, student: nn.Module, data: ImageDataset, at: Epoch) -> None:
    """Write the student's weights of an epoch, with what they are.

    Args:
        folder: of the run.
        which: ``last``, ``best`` or ``ema``; the file's name.
        student: the network, or its average.
        data: what it was trained on.
        at: the epoch.
    """
    test = at.ema if which == "ema" else at.test
    metadata = {
        "arch": name_of(student),
        "num_classes": str(data.num_classes),
        "data": data.name,
        "epoch": str(at.epoch),
        "which": which,
        **({"top1": f"{test['top1']:.4f}"} if test else {}),
        **({"image_size": str(data.image_size)} if data.image_size is not None else {}),
        **({"normalisation": data.normalisation} if data.normalisation != "dataset" else {}),
        **({"class_names": json.dumps(data.class_names)} if data.class_names else {}),
        **({"undivided": data.facts["undivided"]} if "undivided" in data.facts else {}),
        **({"reading": json.dumps(reading)} if (reading := reading_of(data)) else {}),
    }
    save_weights(folder.path / f"{which}.safetensors", student, metadata)

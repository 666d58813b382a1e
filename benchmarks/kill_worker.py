"""The process that `kill.py` kills: it trains, writes its files slowly, and tells what it is doing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

METHODS = {
    "KD": "kd",
    "ITRD": "itrd",
    "CRD": "crd(K=16, feat_dim=8)",
    "AB": "abound(init_epochs=1)",
}
SETTINGS = {"train_subset": 48, "test_subset": 40, "epochs": 8, "batch_size": 16, "seed": 5}
SLOW = 0.012  # seconds that a worker's file operations take longer


_told: Any = None  # the worker's end of the pipe to the harness


def worker(method: str, out: str, teacher: str, told: Any) -> None:
    """Train, or go on training; tell what is being done, a letter at a time."""
    global _told
    _told = told
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 2)
    import torch

    from itrd.engine import trainer as engine
    from itrd.engine.config import DistillConfig
    from itrd.engine.log import Quiet
    from itrd.engine.run import prepare_distill

    torch.set_num_threads(1)
    _slow_files()
    evaluate = engine.evaluate

    def told_evaluate(*arguments: Any, **named: Any) -> Any:
        _tell("e")
        found = evaluate(*arguments, **named)
        _tell("E")
        return found

    engine.evaluate = told_evaluate  # type: ignore[assignment]
    Quiet.step = lambda self, epoch, images: _tell("s")  # type: ignore[method-assign]
    config = DistillConfig(
        **SETTINGS,  # type: ignore[arg-type]
        method=METHODS[method],
        teacher=teacher,
        student="resnet8",
        data="digits",
        device="cpu",
        tensorboard=False,
        progress=False,
        out=out,
        resume=(Path(out) / "config.yaml").exists(),
    )
    with prepare_distill(config) as trainer:
        _tell("r")
        trainer.fit()


def _tell(what: str) -> None:
    os.write(_told.fileno(), what.encode())


def _slow_files() -> None:
    def slow(name: str, letter: str) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            _tell(letter)
            time.sleep(SLOW)
            return original(*arguments, **named)

        setattr(os, name, call)

    for name, letter in (("fsync", "f"), ("link", "l"), ("replace", "m")):
        slow(name, letter)
    fdopen = os.fdopen

    def in_halves(handle: int, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        file = fdopen(handle, mode, *arguments, **named)
        if mode != "wb":
            return file
        write = file.write

        def halves(content: bytes) -> None:
            _tell("w")
            write(content[: len(content) // 2])
            file.flush()
            time.sleep(SLOW)
            _tell("h")
            write(content[len(content) // 2 :])
            file.flush()
            time.sleep(SLOW)

        return _Slow(file, halves)

    os.fdopen = in_halves  # type: ignore[assignment]


class _Slow:
    """A file with another ``write``."""

    def __init__(self, file: Any, write: Any) -> None:
        self._file, self.write = file, write

    def __enter__(self) -> _Slow:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()
        _tell("W")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

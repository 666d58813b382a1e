"""The formats that `fuzzing.py` mutates: how a changed file is made, and what reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

from fuzz_checkpoints import pth, safetensors, state
from fuzz_mutate import Format, mutated


def cifar(folder: Path) -> Format:
    """Python 2 pickles of arrays and labels."""
    import numpy as np

    from data_helpers import python2_pickle
    from itrd.data.pickles import read_pickle

    content = {
        b"data": np.arange(60, dtype=np.uint8).reshape(5, 12),
        b"fine_labels": [1, 2, 300],
        b"x": [b"y"],
    }
    valid = python2_pickle(content)
    tokens = [
        b"cos\nsystem\n",
        b"cnumpy\nndarray\n",
        b"(",
        b"\x85",
        b"R",
        b"b",
        b"h\0",
        b"U\xff",
        b"T\xff\xff\xff\x7f",
    ]

    def make(draw: random.Random) -> bytes:
        return mutated(draw, [valid], tokens)

    return make, lambda raw: read_pickle(raw, "file")


_YAML = b"""# settings
model: resnet8
data: digits
epochs: 3
milestones: [1, 2]
learning_rate: 5e-2
seed: 7
precision: fp32
nesterov: false
out: somewhere
"""
_YAML_TOKENS = [
    *(
        b"&a ",
        b"*a",
        b"!!python/object/apply:os.system [true]",
        b"!!python/name:os.system",
        b"<<: *a",
        b"!x ",
    ),
    *(
        b"class_path: os.system\ninit_args: {command: 'true'}\n",
        b"{",
        b"}",
        b"[" * 50,
        b"]",
        b": ",
        b"\n  ",
        b"- ",
    ),
    *(
        b"2001-02-31",
        b"1e999",
        b".nan",
        b"0x" + b"f" * 40,
        b"'",
        b'"',
        b"|\n",
        b"\0",
        b"\xff",
        b"%TAG ! x\n",
        b"---\n",
    ),
    *(b"config: /etc/passwd\n", b"model: !!binary aaaa\n", b"? ", b"9" * 5000, b"x" * 300),
]


def settings(folder: Path) -> Format:
    """Files for ``--config``."""
    from itrd.cli.parser import build_parser

    path = folder / "x.yaml"
    parser = build_parser()

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
                parser.parse_args(["train", "--config", str(path)])
                return
        except SystemExit as stop:  # the parser's way to refuse
            status = stop.code
        told = errors.getvalue()
        well = status == 2 and told.startswith("itrd: error: ") and told.count("\n") == 1 and len(told) < 1300
        raise Refused if well else RuntimeError(f"status {status}: {told}")

    return lambda draw: mutated(draw, [_YAML], _YAML_TOKENS), read


def run_folder(folder: Path) -> Format:
    """The settings that a run folder holds, as ``--resume`` reads them."""
    from itrd.engine.config import TrainConfig
    from itrd.engine.folder import RunFolder

    config = TrainConfig(model="resnet8", data="digits").resolved()
    first = RunFolder(folder / "run", config)
    first.open()
    first.close()
    held = RunFolder(folder / "run", dataclasses.replace(config, resume=True))
    valid = held.settings.read_bytes()

    def read(raw: bytes) -> None:
        held.settings.write_bytes(raw)
        held.check()

    return lambda draw: mutated(draw, [valid], _YAML_TOKENS), read


def ledger(folder: Path) -> Format:
    """JSON: records of the benchmark, cards of the zoo, checksums of data, results of runs."""
    from itrd.bench.record import parse
    from itrd.data import trust
    from itrd.engine.zoo import read_card
    from itrd.files import read_json

    record = {
        "format": 1,
        "last": {"top1": 71.5, "curve": [1, 2.5, None, True]},
        "text": "a \u00fc",
        "sha256": "0" * 64,
    }
    checksums = {"train": "0" * 64, "test": "1" * 64}
    valid = [json.dumps(value, indent=1).encode() for value in (record, checksums)]
    tokens = [
        b"NaN",
        b"Infinity",
        b"[" * 100_000,
        b"{" * 50,
        b'{"a":' * 30_000,
        b"9" * 5000,
        b"1e999",
        b"\\u0000",
        b'"',
        b"\xff",
    ]
    card = folder / "net.safetensors"
    card.write_bytes(b"")
    path = folder / "net.json"

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        (folder / trust.RECORD).write_bytes(raw)
        readers: list[Callable[[], object]] = [
            lambda: read_json(path),
            lambda: parse(path),
            lambda: read_card(card),
            lambda: trust.recorded(folder),
        ]
        refused = 0
        for reader in readers:
            try:
                reader()
            except (Refused, *_errors()):
                refused += 1
        if refused == len(readers):
            raise Refused

    return lambda draw: mutated(draw, valid, tokens), read


FORMATS = {f.__name__: f for f in (pth, safetensors, state, cifar, settings, run_folder, ledger)}


class Refused(Exception):
    """A reader said no in the way it should."""


def _errors() -> tuple[type[BaseException], ...]:
    from itrd.errors import UserError

    return (UserError, ValueError)

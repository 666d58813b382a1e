"""Checkpoints for `fuzzing.py`: how a changed one is made, and what reads it."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile
from pathlib import Path
from typing import Any

from fuzz_mutate import Format, mutated


def pth(folder: Path) -> Format:
    """Archives and files from before them; half the time the pickle inside, with checksums that are right."""
    import numpy as np
    import torch

    from itrd.engine.checkpoint import load_into, read_weights

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    path = folder / "x.pth"
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    content = {"epoch": 3, "model": net.state_dict(), "best_acc": torch.tensor(5.0), "opt": [1, "two", None]}
    content |= {"best": np.float64(5.0), "curve": np.arange(3)}
    archive, legacy = (_saved(content, new) for new in (True, False))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    tokens = [
        b"PK\3\4",
        b"PK\1\2",
        b"PK\5\6",
        b"(",
        b")",
        b"\x85",
        b"R",
        b"Q",
        b"cos\nsystem\n",
        b"c_codecs\nencode\n",
        b"t",
        b"h\0",
        b".",
    ]
    tokens += [
        b"ctorch HalfStorage\n",
        b"ctorch\nDoubleStorage\n",
        b"K\xff",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
    ]

    def make(draw: random.Random) -> bytes:
        kind = draw.randrange(3)
        if kind < 2:
            return mutated(draw, [archive, legacy][kind : kind + 1], tokens)
        changed = io.BytesIO()
        with zipfile.ZipFile(changed, "w") as copy:
            for name, inside in members.items():
                hit = name.endswith("data.pkl") or draw.random() < 0.05
                copy.writestr(name, mutated(draw, [inside], tokens) if hit else inside)
        return changed.getvalue()

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        state, _ = read_weights(path)
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        if {key: value.shape for key, value in state.items()} == shapes:
            load_into(net, state, "x")

    return make, read


def safetensors(folder: Path) -> Format:
    """The header is JSON in front of the numbers."""
    import torch

    from itrd.engine.checkpoint import load_into, read_weights, save_weights

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    path = folder / "x.safetensors"
    save_weights(path, net, {"arch": "resnet8", "num_classes": "10"})
    valid = path.read_bytes()
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    tokens = [
        b'"F32"',
        b'"I64"',
        b'"F8_E5M2"',
        b"[",
        b"]",
        b"{",
        b"}",
        b"99999999999",
        b"-1",
        b'"',
        b"null",
        b"1e9",
    ]

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return mutated(draw, [valid], tokens)
        size = int.from_bytes(valid[:8], "little")  # the header alone, with a length that is right
        header = mutated(draw, [valid[8 : 8 + size]], tokens)
        return len(header).to_bytes(8, "little") + header + valid[8 + size :]

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        state, metadata = read_weights(path)
        assert all(isinstance(value, str) for value in metadata.values())
        if {key: value.shape for key, value in state.items()} == shapes:
            load_into(net, state, "x")

    return make, read


def state(folder: Path) -> Format:
    """A run's state, with a checksum that is right in half of the files."""
    import hashlib

    import torch

    from itrd.engine.checkpoint import load_state, save_state
    from itrd.engine.state import MISFITS, Position, generators, restore_generators

    position = Position(torch.device("cpu"))
    position.meter.add({"loss": torch.tensor(1.0)}, 4)
    path = folder / "checkpoint.pt"
    content = {
        "position": position.state_dict(),
        "task": {"w": torch.ones(3)},
        **generators(torch.device("cpu")),
    }
    save_state(path, content)
    valid = path.read_bytes()
    head = valid.index(b"\n") + 1
    with zipfile.ZipFile(io.BytesIO(valid[head:])) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    tokens = [b"K\xff", b"J\xff\xff\xff\x7f", b"(", b"N", b"\x85", b"X\1\0\0\0a", b"G\x7f\xf8\0\0\0\0\0\0"]

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.3:
            return mutated(draw, [valid], tokens)
        changed = io.BytesIO()
        with zipfile.ZipFile(changed, "w") as copy:
            for name, inside in members.items():
                copy.writestr(name, mutated(draw, [inside], tokens) if name.endswith("data.pkl") else inside)
        body = changed.getvalue()
        return b"itrd-checkpoint-1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        found, _ = load_state(path)
        with contextlib.suppress(*MISFITS):
            position.load_state_dict(found["position"])  # what `restore_run` turns into a CheckpointError
            restore_generators(found, torch.device("cpu"))

    return make, read


def _saved(content: Any, new: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()

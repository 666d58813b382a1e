"""Checkpoints that want to do harm: each is refused in one line, and nothing of it runs."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itrd.engine import checkpoint
from itrd.engine.checkpoint import load_into, load_state, read_weights, save_state
from itrd.engine.config import TrainConfig
from itrd.engine.pth import load_pth
from itrd.engine.run import prepare_train
from itrd.errors import CheckpointError
from itrd.models import create_model

# --- .pth ------------------------------------------------------------------------------------------------


def saved(content: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


WEIGHTS = {"model": {"w": torch.arange(10.0)}}
ARCHIVE, LEGACY = saved(WEIGHTS), saved(WEIGHTS, _use_new_zipfile_serialization=False)


def repacked(
    edit: Callable[[str, bytes], bytes] = lambda name, content: content,
    raw: bytes = ARCHIVE,
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return out.getvalue()


def with_pickle(content: bytes) -> bytes:
    return repacked(lambda name, old: content if name.endswith("data.pkl") else old)


def change_pickle(old: bytes, new: bytes) -> bytes:
    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        assert old in content
        return content.replace(old, new)

    return repacked(edit)


def reducing(function: object, *arguments: object) -> object:
    class Reducing:
        def __reduce__(self) -> tuple:
            return function, arguments

    return Reducing()


def deep(opcode: bytes, times: int, around: bytes = b"%s") -> bytes:
    return b"\x80\x02" + around.replace(b"%s", b")" + opcode * times) + b"."


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def twice() -> bytes:
    out = io.BytesIO(ARCHIVE)
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return out.getvalue()


def count_of(raw: bytes, number: bytes) -> bytes:
    changed = raw.replace(b"K\nNt", number + b"Nt").replace(b"K\nt", number + b"t")
    assert changed != raw
    return changed


PAIRS = b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))  # a pair of one value twice, of that twice, ...
HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x01"  # 2^40
MANY = "".join(chr(0x4E00 + i % 20_000) for i in range(66_666)).encode() + b"xx"  # 200,000 bytes


PTH: dict[str, tuple[Callable[[], bytes], str]] = {
    "os.system": (lambda: saved({"model": reducing(os.system, "touch executed")}), "more than weights"),
    "os.system, old format": (
        lambda: saved({"model": reducing(os.system, "touch executed")}, _use_new_zipfile_serialization=False),
        "more than weights",
    ),
    "a bare pickle": (lambda: pickle.dumps(reducing(os.system, "touch executed")), "not a readable"),
    "eval": (lambda: with_pickle(b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R."), "more than weights"),
    "getattr chain": (
        lambda: with_pickle(b"\x80\x02cbuiltins\ngetattr\nctorch\nhub\nX\x04\0\0\0load\x86RX\1\0\0\0x\x85R."),
        "more than weights",
    ),
    "nested name": (lambda: with_pickle(b"\x80\x02ctorch.serialization\nos.system\n."), "more than weights"),
    "text in a slow codec": (
        lambda: with_pickle(
            b"\x80\x02c_codecs\nencode\nX" + struct.pack("<I", 200_000) + MANY + b"X\x08\0\0\0punycode\x86R."
        ),
        "more than weights",
    ),
    "a codec by another name": (
        lambda: with_pickle(b"\x80\x02c_codecs\nencode\nq\0X\1\0\0\0aX\6\0\0\0utf-32\x86q\1h\0h\1R."),
        "more than weights",
    ),
    "torch.load": (lambda: with_pickle(b"\x80\x02ctorch\nload\nX\1\0\0\0x\x85R."), "more than weights"),
    "new object": (lambda: with_pickle(b"\x80\x02csubprocess\nPopen\n)\x81."), "more than weights"),
    "an own class": (lambda: saved(torch.nn.Linear(1, 1)), "more than weights"),
    "TorchScript": (script, "more than weights"),
    "storage larger than its member": (lambda: change_pickle(b"K\nt", b"M\xff\xfft"), "storage"),
    "storage of 4 TB": (lambda: change_pickle(b"K\nt", HUGE + b"t"), "storage"),
    "storage of 4 TB, old format": (lambda: count_of(LEGACY, HUGE), "claims to hold more"),
    "storage of negative size": (lambda: change_pickle(b"K\nt", b"J\xff\xff\xff\xfft"), "negative"),
    "view past the end": (lambda: change_pickle(b"K\n\x85", b"M\xff\xff\x85"), "not a readable"),
    "view of strides 0": (
        lambda: saved({"model": {"w": torch.zeros(1).expand(1 << 20, 1 << 20)}}),
        "larger than the file",
    ),
    "the same numbers a thousand times": (
        lambda: saved({"model": {str(i): WEIGHTS["model"]["w"].expand(1000, 10) for i in range(1000)}}),
        "larger than the file",
    ),
    "compressed": (lambda: repacked(method=zipfile.ZIP_DEFLATED), "compressed"),
    "bomb": (
        lambda: repacked(
            lambda name, old: bytes(50_000_000) if name.endswith("data/0") else old,
            method=zipfile.ZIP_DEFLATED,
        ),
        "compressed",
    ),
    "a name twice": (twice, "twice"),
    "tuples, a million deep": (lambda: with_pickle(deep(b"\x85", 1_000_000 - 10)), "deep"),
    "such tuples as a key": (lambda: with_pickle(deep(b"\x85", 500_000, b"}%sK\1s")), "deep"),
    "such tuples as a key, old format": (
        lambda: LEGACY[:137] + deep(b"\x85", 500_000, b"}%sK\1s"),
        "deep",
    ),
    "lists in lists": (lambda: with_pickle(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."), "deep"),
    "marks over many values": (
        lambda: with_pickle(b"\x80\x02" + b"]" * 150_000 + b"(l" * 100_000),
        "damaged",
    ),
    "a value changed that is a mark": (lambda: with_pickle(b"\x80\x02(K\1a."), "damaged"),
    "pairs of pairs as a key": (lambda: with_pickle(b"\x80\x02}K\1" + PAIRS + b"K\1s."), "repeats"),
    "pairs of pairs as a name": (lambda: with_pickle(b"\x80\x02K\1" + PAIRS + b"K\1\x93."), "repeats"),
    "a long text, often": (
        lambda: with_pickle(b"\x80\x02]X\xff\xff\0\0" + b"x" * 65535 + b"q\0" + b"h\0h\0\x93" * 2000 + b"."),
        "repeats",
    ),
    "bytes that nobody wrote": (
        lambda: with_pickle(b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x70\x85R."),
        "without filling it",
    ),
    "endless opcodes": (lambda: with_pickle(b"\x80\x02" + b"}0" * 600_000 + b"}."), "opcodes"),
    "recursion through the memo": (lambda: with_pickle(b"\x80\x02}q\0X\1\0\0\0ah\0s."), "no weights"),
    "no tensors": (lambda: saved({"model": {"w": 1}}), "no weights"),
    "a list": (lambda: saved([1, 2]), "no weights"),
    "nothing": (lambda: b"", "not a readable"),
    "an empty archive": (lambda: b"PK\5\6" + bytes(18), "not a readable"),
    "an old tar": (lambda: b"storages" + bytes(1000), "damaged"),
    "a flipped bit of a weight": (
        lambda: ARCHIVE.replace(struct.pack("<f", 5.0), struct.pack("<f", 5.0000005)),
        "not a readable",
    ),
}


@pytest.mark.parametrize("kind", PTH)
def test_pth(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = PTH[kind]
    path = tmp_path / "x.pth"
    path.write_bytes(make())
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(path)
    assert time.monotonic() - started < 10
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_the_checks_let_good_files_through() -> None:
    long = {"list": list(range(110_000)), "again": [WEIGHTS] * 1000}  # pickled in pieces of a thousand
    for content in (WEIGHTS, long, {"a": [1, 2.5, None, True, "x", (1, 2)], "t": torch.ones(2, 3).half()}):
        for new in (True, False):
            found = load_pth(saved(content, _use_new_zipfile_serialization=new), "x")
            assert saved(found, _use_new_zipfile_serialization=new)[:0] == b""
            assert str(found) == str(content)


@pytest.mark.parametrize("value", [torch.eye(10).to_sparse()[0], torch.ones(10, dtype=torch.complex64)])
def test_tensors_of_other_kinds(value: torch.Tensor) -> None:
    net = torch.nn.Linear(10, 1, bias=False)
    state = {"weight": value.reshape(1, 10) if not value.is_sparse else value.unsqueeze(0)}
    with pytest.raises(CheckpointError, match="no plain tensor"):
        load_into(net, state, "x.pth")


def test_a_network_of_a_trillion_classes(tmp_path: Path) -> None:
    state = create_model("resnet8", 10).state_dict()
    state["fc.bias"] = torch.zeros(1).expand(1 << 40)
    with pytest.raises(CheckpointError, match="shape"):
        load_into(create_model("resnet8", checkpoint.classes_in(state) or 100), state, "x")


# --- other checkpoints -----------------------------------------------------------------------------------


def header(content: object, length: int | None = None, tail: bytes = bytes(8)) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def tensor(start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end], **changes}


SAFETENSORS = {
    "length of 2^63": header({"a": tensor(0, 8)}, 1 << 63),
    "length past the end": header({"a": tensor(0, 8)}, 500),
    "overlap": header({"a": tensor(0, 8), "b": tensor(4, 8)}),
    "hole": header({"a": tensor(4, 8)}),
    "past the end": header({"a": tensor(0, 800)}),
    "shape that lies": header({"a": tensor(0, 8, shape=[1 << 40])}),
    "shape that overflows": header({"a": tensor(0, 8, shape=[1 << 62, 1 << 62])}),
    "negative shape": header({"a": tensor(0, 8, shape=[-2])}),
    "unknown type": header({"a": tensor(0, 8, dtype="O")}),
    "metadata that is no text": header({"__metadata__": {"a": 1}, "a": tensor(0, 8)}),
    "metadata that is a list": header({"__metadata__": [], "a": tensor(0, 8)}),
    "deep JSON": header(b'{"a":' * 100_000),
    "deep list": header(b"[" * 100_000),
    "not text": header(b"\xff\xfe"),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_safetensors(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(SAFETENSORS[kind])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_weights(path)


def state_file(path: Path, body: bytes) -> None:
    path.write_bytes(b"itrd-checkpoint-1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def test_what_a_program_has_allowed_for_its_own_files_is_not_called(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(with_pickle(b"\x80\x02cproject\ngetcwd\n)R."))
    with torch.serialization.safe_globals([(os.getcwd, "project.getcwd"), argparse.Namespace]):
        assert torch.load(path, weights_only=True) == os.getcwd()
        before = torch.serialization.get_safe_globals()
        with pytest.raises(CheckpointError, match="could execute code"):
            read_weights(path)
        torch.save({"best_acc": np.float64(1), **WEIGHTS}, path)
        assert read_weights(path)[0].keys() == {"w"}
        assert set(torch.serialization.get_safe_globals()) == set(before)


def test_a_state_with_numbers_of_numpy(tmp_path: Path) -> None:
    """They are not let be there: a method would get something else back than it gave."""
    state_file(tmp_path / "checkpoint.pt", saved({"task": {"extra": np.float64(1)}}))
    with pytest.raises(CheckpointError, match="more than weights"):
        load_state(tmp_path / "checkpoint.pt")


def test_a_state_with_code_and_a_right_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state_file(Path("checkpoint.pt"), saved({"task": reducing(os.system, "touch executed")}))
    with pytest.raises(CheckpointError, match="more than weights"):
        load_state(Path("checkpoint.pt"))
    state_file(Path("checkpoint.pt"), saved([1, 2]))
    with pytest.raises(CheckpointError, match="no state of a run"):
        load_state(Path("checkpoint.pt"))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("position", {"stage": -1}),
        ("position", {"epoch": "x", "stage": 0}),
        ("position", None),
        ("task", {}),
        ("task", [1]),
        ("history", [{"epoch": 1}]),
        ("history", 3),
        pytest.param("history", "[" * 100_000, id="history-nested"),
        ("first_stages", '[{"epoch": 1}]'),
        ("optimizer", {"state": 1}),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("rng", torch.zeros(3)),
        ("python_rng", (3, (-1,) * 625, None)),
        ("numpy_rng", {"state": {"key": torch.zeros(1)}}),
    ],
)
def test_a_state_of_another_run(part: str, value: object, tmp_path: Path, tiny: dict[str, Any]) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits", "out": str(tmp_path / "run"), "progress": False}
    path = tmp_path / "run" / "checkpoint.pt"
    with prepare_train(TrainConfig(**settings)) as trainer:
        trainer.request_stop()
        with pytest.raises(BaseException, match="stopped"):
            trainer.fit()
    state, _ = load_state(path)
    save_state(path, {**state, part: value})
    with prepare_train(TrainConfig(**settings, resume=True)) as trainer:
        before = torch.get_rng_state()
        with pytest.raises(CheckpointError, match="does not fit this run"):
            trainer.fit()
        torch.set_rng_state(before)

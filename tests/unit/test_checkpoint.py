"""Weights in and out; nothing in a file is executed; damage is noticed."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

import itrd
from itrd.engine import zoo
from itrd.engine.checkpoint import (
    canonical_safetensors,
    load_into,
    load_state,
    read_weights,
    save_state,
    save_weights,
)
from itrd.engine.networks import architecture_from_path, check_name, load_network
from itrd.errors import CheckpointError, UserError
from itrd.files import write_atomically
from itrd.models import create_model


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_safetensors_round_trip(tmp_path: Path) -> None:
    net = create_model("resnet8", 10)
    save_weights(tmp_path / "w.safetensors", net, {"arch": "resnet8", "num_classes": "10", "data": "digits"})
    loaded = load_network(str(tmp_path / "w.safetensors"))
    assert (loaded.arch, loaded.num_classes, loaded.data) == ("resnet8", 10, "digits")
    assert not loaded.net.training
    assert same(loaded.net, net)


def test_equal_weights_and_metadata_give_equal_bytes() -> None:
    state = create_model("resnet8", 10).state_dict()
    words = {
        f"key{i}": str(i) for i in range(12)
    }  # twelve keys in the library's own order are never sorted twice
    content = canonical_safetensors(state, words)
    assert canonical_safetensors(dict(state), dict(reversed(words.items()))) == content
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(words)
    loaded = load(content)
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


class Tied(torch.nn.Module):
    """Two layers with the same weight, and a buffer that is a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)
        self.head.weight = self.first.weight
        self.register_buffer("rows", self.first.weight.detach()[2:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x.flatten(1)[:, 100:110]))


def trained(net: torch.nn.Module, folder: Path) -> Path:
    small = {"train_subset": 20, "test_subset": 10, "epochs": 1, "tensorboard": False, "progress": False}
    itrd.train(net, "digits", out=str(folder), **small)
    return folder / "last.safetensors"


@pytest.mark.parametrize(
    "write",
    [
        trained,
        lambda net, folder: itrd.export_model(net, folder).path,
        lambda net, folder: zoo.write("tied", net.double(), {}, folder),  # floats are rounded into copies
    ],
    ids=["run", "export", "zoo"],
)
def test_tensors_that_share_memory_are_written_whole(
    write: Callable[[torch.nn.Module, Path], Path], tmp_path: Path
) -> None:
    net = Tied()
    state, _ = read_weights(write(net, tmp_path / "out"))
    for key, value in net.state_dict().items():
        assert torch.equal(state[key], value)


@pytest.mark.parametrize(
    "kind",
    [
        "epoch",
        "best",
        "last",
        "plain",
        "backbone",
        "parallel backbone",
        "auxiliary alone",
        "auxiliary beside model",
    ],
)
def test_published_checkpoint_layouts(tmp_path: Path, kind: str) -> None:
    net = create_model("wrn_16_1", 100)
    state = net.state_dict()
    auxiliary = {"auxiliary.w": torch.zeros(1), "auxiliary_head.bias": torch.zeros(2)}
    content = {
        "epoch": {"epoch": 240, "model": state, "accuracy": torch.tensor([75.6]), "optimizer": {"state": {}}},
        "best": {"epoch": 200, "model": state, "best_acc": torch.tensor(75.9)},
        "last": {"opt": argparse.Namespace(model="wrn_16_1", trial=0), "model": state},
        "plain": state,
        "backbone": {"net": {f"backbone.{k}": v for k, v in state.items()} | auxiliary},
        "parallel backbone": {
            "net": {f"module.backbone.{k}": v for k, v in state.items()}
            | {f"module.{k}": v for k, v in auxiliary.items()}
        },
        "auxiliary alone": {"net": {**state, **auxiliary}},
        "auxiliary beside model": {"model": {**state, **auxiliary}},
    }[kind]
    folder = tmp_path / "wrn_16_1_vanilla"
    folder.mkdir()
    torch.save(content, folder / "ckpt_epoch_240.pth")
    loaded = load_network(str(folder / "ckpt_epoch_240.pth"))
    assert loaded.arch == "wrn_16_1"
    assert same(loaded.net, net)


def test_auxiliary_modules_of_other_networks_are_kept(tmp_path: Path) -> None:
    state = {"auxiliary.w": torch.zeros(1), "head.weight": torch.zeros(2)}
    torch.save({"model": state}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth")[0].keys() == state.keys()
    torch.save({"net": {"auxiliary.w": torch.zeros(1)}}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_weights(tmp_path / "y.pth")


@pytest.mark.parametrize("kind", ["archive", "legacy", "of another NumPy"])
def test_numbers_of_numpy_beside_the_weights_are_let_be(tmp_path: Path, kind: str) -> None:
    """Scripts leave their best accuracy and their curves as they had them."""
    net = create_model("resnet8", 10)
    content = {"best_acc": np.float64(71.5), "curve": np.arange(3.0), "model": net.state_dict()}
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    if kind == "of another NumPy":
        names = [b"cnumpy._core.", b"cnumpy.core."]
        if names[0] not in path.read_bytes():
            names.reverse()
        path.write_bytes(path.read_bytes().replace(*names))
        assert names[1] in path.read_bytes()
    state, _ = read_weights(path)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_numpy_weights_are_named(tmp_path: Path) -> None:
    net = create_model("resnet8", 10)
    arrays = {key: value.numpy() for key, value in net.state_dict().items()}
    torch.save({"model": arrays}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth: conv1.weight is an array of NumPy's, not a tensor"):
        read_weights(tmp_path / "x.pth")


def test_files_without_batch_counters_load(tmp_path: Path) -> None:
    net = create_model("resnet8", 100)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"model": state}, tmp_path / "old.pth")
    assert same(load_network(f"resnet8:{tmp_path / 'old.pth'}").net, net)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    torch.save({"model": create_model("resnet20", 100).state_dict()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of resnet8: .*; it fits resnet20"):
        load_network(f"resnet8:{tmp_path / 'x.pth'}")
    with pytest.raises(UserError, match=r"x\.pth .* it fits resnet20: write resnet20:.*x\.pth"):
        load_network(str(tmp_path / "x.pth"))
    torch.save({"model": {"head.weight": torch.zeros(2)}}, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"cannot tell the architecture of .*; write NAME:.*timm:NAME@.*x\.pth"
    ):
        load_network(str(tmp_path / "x.pth"))


def test_safetensors_under_another_name_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_weights(path, create_model("resnet8", 10), {})
    with pytest.raises(
        CheckpointError, match=r"x.pth is a safetensors file of another name; rename it to x.safet"
    ):
        load_network(f"resnet8:{path}")


def test_entries_are_named_in_one_order() -> None:
    state = {name: torch.zeros(1) for name in ("c", "b", "a")}
    for given in (state, dict(reversed(state.items()))):
        with pytest.raises(CheckpointError, match=r"unexpected \(a, b\)"):
            load_into(create_model("resnet8", 10), given, "x")


def test_a_run_of_a_comparison_is_suggested(tmp_path: Path) -> None:
    for name in ("seed0", "seed0-alone"):
        (tmp_path / name).mkdir()
        save_weights(tmp_path / name / "last.safetensors", create_model("resnet8"), {"arch": "resnet8"})
    with pytest.raises(CheckpointError, match=r"holds several runs; name one of them, as in .*/seed0$"):
        load_network(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "meant"), [("torchvison:resnet18", "torchvision"), ("resnt8:x.pth", "resnet8")]
)
def test_an_unknown_prefix_is_named(name: str, meant: str) -> None:
    for use in (load_network, check_name):
        with pytest.raises(UserError, match=f"unknown prefix .*; did you mean '{meant}'.*known: timm, torch"):
            use(name)


def test_shape_mismatch_is_named() -> None:
    state = create_model("resnet8", 10).state_dict()
    with pytest.raises(CheckpointError, match=r"fc.weight has shape \(10, 64\) instead of \(100, 64\)"):
        load_into(create_model("resnet8", 100), state, "x.pth")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "executed"
    content = {"model": create_model("resnet8").state_dict(), "extra": Touch(trace)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="refused: it asks for more than weights"):
        read_weights(tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "raw.pth")
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    net = create_model("resnet8")
    if suffix == ".pth":
        torch.save({"model": net.state_dict()}, path)
    else:
        save_weights(path, net, {"arch": "resnet8"})
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="again"):
            read_weights(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_weights(tmp_path / f"absent{suffix}")


def test_architecture_from_path() -> None:
    assert architecture_from_path("save/models/wrn_40_2_vanilla/ckpt_epoch_240.pth") == "wrn_40_2"
    assert architecture_from_path("a/resnet32x4_vanilla/x.pth") == "resnet32x4"
    assert architecture_from_path("a/b/x.pth") is None


def test_state_falls_back_to_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"step": 1, "tensor": torch.arange(5)})
    save_state(path, {"step": 2, "tensor": torch.arange(5)})
    assert load_state(path)[0]["step"] == 2
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    state, message = load_state(path)
    assert state["step"] == 1
    assert message is not None
    assert "checksum does not match; continuing from checkpoint.prev.pt" in message
    (tmp_path / "checkpoint.prev.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_state(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

"""Packed inference against the training graph: whole numbers exactly, and files that are not what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from itrd.errors import CheckpointError, UserError
from itrd.export import packed
from itrd.export.packed import PackedConv2d, PackedNet, dots_of, load_packed, numpy_dots, pack, save_packed
from itrd.models import create_model
from itrd.models.base import FeatureNet
from itrd.models.binary.layers import BinaryConv2d

BINARY = ("resnet18_1w1a", "resnet20_1w1a", "vgg_small_1w1a")
KERNELS = ("numpy", "compiled")


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(name: str, steps: int = 1) -> FeatureNet:
    """A network whose weights, scales and statistics have moved."""
    torch.manual_seed(0)
    net = create_model(name, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(images(8)), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture
def compiled() -> None:
    if packed.compiled_dots() is None:
        pytest.skip("no C compiler here")


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    return trained("resnet20_1w1a", steps=3)


# --- convolutions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("c_in", "c_out", "height", "width"),
    [(1, 1, 1, 1), (3, 5, 4, 7), (8, 2, 5, 5), (13, 9, 2, 3), (64, 16, 8, 8), (70, 4, 3, 3)],
)
def test_sums_are_those_of_the_training_graph(
    c_in: int, c_out: int, height: int, width: int, stride: int, kernel: str, compiled: None
) -> None:
    """Odd shapes, borders, and exact zeros among activations and weights."""
    torch.manual_seed(c_in)
    conv = BinaryConv2d(c_in, c_out, stride).eval()
    x = torch.randn(2, c_in, height, width)
    x[torch.rand_like(x) < 0.3] = 0.0
    x[torch.rand_like(x) < 0.05] = -0.0
    with torch.no_grad():
        conv.weight[0] = 0.25  # a constant filter: centred, all of its weights are zero
        if c_out > 1:
            # A tenth of the others are exactly at their filter's mean.
            flat = conv.weight[1:].view(c_out - 1, -1)
            flat.copy_(torch.randint(-4, 5, flat.shape).float())
            flat[:, ::9] = 0.0
            flat[:, 1::9] -= flat.sum(1, keepdim=True) / flat[:, 1::9].shape[1]
        expected = conv.convolve(x)
        layer = PackedConv2d.of(conv, dots_of(kernel))  # type: ignore[arg-type]
        assert layer.zeros is not None
        got = layer.convolve(x)
        assert torch.equal(got, expected)
        assert torch.equal(got, got.round())
        assert torch.equal(layer(x), conv(x))


def test_a_hand_made_border() -> None:
    """All ones: an inner pixel sees nine of them, an edge six, a corner four; padding counts for nothing."""
    conv = BinaryConv2d(1, 1).eval()
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[0, 0, 1, 1] = -8.5  # mean below the ones, so that they are +1 and the centre -1
    layer = PackedConv2d.of(conv, numpy_dots)
    assert layer.zeros is None
    sums = layer.convolve(torch.ones(1, 1, 3, 3))[0, 0]
    assert sums.tolist() == [[2, 4, 2], [4, 7, 4], [2, 4, 2]]
    assert not layer.convolve(torch.zeros(1, 1, 3, 3)).any()


def test_kernels_agree_on_random_words(compiled: None) -> None:
    rng = np.random.default_rng(0)
    positive, valid = rng.integers(0, 2**64, (2, 33, 11), dtype=np.uint64)
    weights = rng.integers(0, 2**64, (11, 21), dtype=np.uint64)
    got = dots_of("compiled")(positive, valid, weights)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, numpy_dots(positive, valid, weights))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    packed.compiled_dots.cache_clear()
    try:
        assert dots_of("auto") is numpy_dots
        with pytest.raises(UserError, match="choose kernel numpy"):
            dots_of("compiled")
    finally:
        packed.compiled_dots.cache_clear()


# --- networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", BINARY)
def test_logits_of_a_network(name: str, kernel: str, tmp_path: Path, compiled: None) -> None:
    net = trained(name)
    save_packed(net, tmp_path / "net.safetensors", {"data": "cifar10"})
    loaded = load_packed(tmp_path / "net.safetensors", kernel)  # type: ignore[arg-type]
    assert isinstance(loaded, PackedNet)
    assert (loaded.arch, loaded.metadata["data"]) == (name, "cifar10")
    with torch.no_grad():
        expected, got = net.observe(images()), loaded.train().net.observe(images())
    # Between whole numbers that are equal stand the same operations on the same shapes: equal bits.
    for a, b in zip((got.logits, *got.maps), (expected.logits, *expected.maps), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(loaded(images()), expected.logits)


def test_size_is_a_thirtysecond_of_the_binary_weights(tmp_path: Path) -> None:
    net = create_model("resnet18_1w1a", 10)
    save_packed(net, tmp_path / "net.safetensors")
    state = load_file(tmp_path / "net.safetensors")
    latent = sum(4 * m.weight.numel() for m in net.modules() if isinstance(m, BinaryConv2d))
    bits = sum(value.nbytes for key, value in state.items() if key.endswith(".bits"))
    assert bits * 32 == latent
    others = sum(value.nbytes for key, value in state.items() if not key.endswith(".bits"))
    header = (tmp_path / "net.safetensors").stat().st_size - bits - others
    assert 0 < header < 20_000


def test_the_network_itself_is_left_as_it_is(net: FeatureNet) -> None:
    before = {key: value.clone() for key, value in net.state_dict().items()}
    pack(net, "numpy")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert any(isinstance(m, BinaryConv2d) for m in net.modules())


def test_only_binary_networks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet8 cannot be packed"):
        save_packed(create_model("resnet8", 10), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


# --- files -----------------------------------------------------------------------------------------------


@pytest.fixture
def file(net: FeatureNet, tmp_path: Path) -> Path:
    save_packed(net, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_packed(path, "numpy")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_equal_networks_give_equal_bytes(net: FeatureNet, file: Path, tmp_path: Path) -> None:
    save_packed(net, tmp_path / "again.safetensors")
    assert file.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_missing_and_truncated(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert "not a complete safetensors file" in refused(file)
    assert "No such file" in refused(tmp_path / "none.safetensors")
    assert "no packed network" in refused(tmp_path / "net.pth")


def altered(file: Path, **metadata: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    state = load_file(file)
    length = int.from_bytes(file.read_bytes()[:8], "little")
    said = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    return state, {**said, **metadata}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "itrd-packed-9"}, "no packed network of this version"),
        ({"arch": "resnet9000"}, "no packed network of this version"),
        ({"arch": "resnet8"}, "resnet8 has no binary convolution"),
        ({"arch": "resnet18_1w1a"}, "is not a checkpoint of resnet18_1w1a"),
    ],
)
def test_wrong_metadata(file: Path, metadata: dict[str, str], message: str) -> None:
    state, said = altered(file, **metadata)
    save_file(state, file, said)
    assert message in refused(file)


BITS = "layers.0.0.conv1.bits"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (BITS, None, "1 entries missing"),
        (BITS, torch.zeros(16, 17, dtype=torch.uint8), "has shape"),
        (BITS, torch.zeros(16, 18), "is torch.float32 instead of torch.uint8"),
        ("layers.0.0.conv1.zeros", torch.zeros(2, 2, dtype=torch.uint8), "has shape"),
        ("layers.0.0.conv1.alpha", torch.zeros(16, 1, 1, dtype=torch.int32), "instead of torch.float32"),
        ("surprise", torch.zeros(1), "1 unexpected (surprise)"),
        ("fc.bias", torch.zeros(0), "no packed network of this version"),
    ],
)
def test_wrong_tensors(file: Path, key: str, value: Tensor | None, message: str) -> None:
    state, metadata = altered(file)
    if value is None:
        del state[key]
    else:
        state[key] = value
    save_file(state, file, metadata)
    assert message in refused(file)

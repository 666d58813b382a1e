"""The binary networks and their teacher: sizes, features, schedules, and every method on a binary student."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from itrd.bench.costs import multiply_adds
from itrd.engine.fold import fold_batch_norms
from itrd.methods import list_methods, method_class
from itrd.models import BENCHMARK_MODELS, create_model, list_models
from itrd.models.binary.layers import BinaryConv2d
from itrd.models.binary.resnet import BinaryResNet
from method_tools import first_stage_steps, main_steps, moved_by, small_batch, small_task

BINARY = ("resnet18_1w1a", "resnet20_1w1a", "vgg_small_1w1a")
NEW = ("resnet18_cifar", *BINARY)


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def binary_conv(c_in: int, c_out: int) -> int:
    """Latent weights, and one scale a channel."""
    return 9 * c_in * c_out + c_out


def norm(c: int) -> int:
    return 2 * c


def binary_block(c_in: int, c_out: int) -> int:
    return binary_conv(c_in, c_out) + binary_conv(c_out, c_out) + 2 * norm(c_out)


def plain_block(c_in: int, c_out: int) -> int:
    shortcut = c_in * c_out + norm(c_out) if c_in != c_out else 0
    return 9 * c_in * c_out + 9 * c_out * c_out + 2 * norm(c_out) + shortcut


_FOUR = ((64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512))
_NINE = (*[(16, 16)] * 3, (16, 32), *[(32, 32)] * 2, (32, 64), *[(64, 64)] * 2)
_VGG = ((128, 128), (128, 256), (256, 256), (256, 512), (512, 512))
# With 10 classes: stem and its norm, the body, what stands before the classifier, the classifier.
PARAMETERS = {
    "resnet18_cifar": 27 * 64 + norm(64) + sum(plain_block(*b) for b in _FOUR) + 512 * 10 + 10,
    "resnet18_1w1a": 27 * 64 + norm(64) + sum(binary_block(*b) for b in _FOUR) + norm(512) + 512 * 10 + 10,
    "resnet20_1w1a": 27 * 16 + norm(16) + sum(binary_block(*b) for b in _NINE) + norm(64) + 64 * 10 + 10,
    "vgg_small_1w1a": 27 * 128 + norm(128) + sum(binary_conv(*b) + norm(b[1]) for b in _VGG) + 8192 * 10 + 10,
}
_STAGES = [(64, 32), (128, 16), (256, 8), (512, 4)]
SHAPES = {
    "resnet18_cifar": (64, _STAGES, 512),
    "resnet18_1w1a": (64, _STAGES, 512),
    "resnet20_1w1a": (16, [(16, 32), (32, 16), (64, 8)], 64),
    "vgg_small_1w1a": (128, [(128, 16), (256, 8), (512, 4)], 8192),
}


def test_the_table() -> None:
    assert list_models() == [*BENCHMARK_MODELS, *NEW]
    assert len(BENCHMARK_MODELS) == 22


@pytest.mark.parametrize("name", NEW)
def test_parameters_and_shapes(name: str) -> None:
    stem, maps, embedding = SHAPES[name]
    with torch.device("meta"):
        net = create_model(name, 10)
        out = net.observe(torch.empty(2, 3, 32, 32), preact=True)
        with pytest.raises(ValueError, match="takes 32x32 images"):
            net.eval()(torch.empty(2, 3, 48, 48))
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    assert (net.arch, net.num_classes) == (name, 10)
    assert out.stem is not None
    assert out.stem.shape == (2, stem, 32, 32)
    assert [f.shape for f in out.maps] == [(2, c, side, side) for c, side in maps]
    assert out.embedding is not None
    assert out.embedding.shape == (2, embedding)
    assert out.logits.shape == (2, 10)


def test_binary_convolutions_are_counted_in_what_a_run_costs() -> None:
    convs = [(16, 16, 32)] * 6 + [(16, 32, 16)] + [(32, 32, 16)] * 5 + [(32, 64, 8)] + [(64, 64, 8)] * 5
    inside = sum(9 * c_in * c_out * side**2 for c_in, c_out, side in convs)
    assert multiply_adds("resnet20_1w1a") == 27 * 16 * 32**2 + inside + 64 * 100


@pytest.mark.parametrize("name", NEW)
def test_features_are_what_the_forward_pass_uses(name: str) -> None:
    """With and without pre-activation: the same logits; a map is the pre-activation after the activation."""
    torch.manual_seed(0)
    net = create_model(name, 10).train()
    with torch.no_grad():
        net(images(8))
    net.eval()
    with torch.no_grad():
        post, pre = net.observe(images()), net.observe(images(), preact=True)
        assert torch.equal(net(images()), post.logits)
        assert post.embedding is not None
        assert torch.equal(net.classify(post.embedding), post.logits)
    assert torch.equal(post.logits, pre.logits)
    activation = nn.ReLU() if name == "resnet18_cifar" else nn.Hardtanh()
    for after, before in zip(post.maps, pre.maps, strict=True):
        assert torch.equal(after, activation(before))
        assert not torch.equal(after, before)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("preact", [False, True])
def test_returned_features_are_not_modified_afterwards(name: str, preact: bool) -> None:
    torch.manual_seed(0)
    net = create_model(name, 10).train()
    features, logits = net(images(4), is_feat=True, preact=preact)
    before = [(f, f._version, f.detach().clone()) for f in features]
    (logits.sum() + sum(f.square().mean() for f in features)).backward()
    for f, version, value in before:
        assert f._version == version
        assert torch.equal(f, value)
    assert all(p.grad is not None for p in net.parameters())


def test_stem_of_the_two_binary_resnets() -> None:
    """ResNet-18 has no activation after its stem, ResNet-20 a hardtanh."""
    for name, bounded in (("resnet18_1w1a", False), ("resnet20_1w1a", True)):
        stem = create_model(name, 10).train().observe(5 * images(4)).stem
        assert stem is not None
        assert (float(stem.detach().abs().max()) <= 1) == bounded


def test_shortcuts_carry_real_numbers() -> None:
    """With all scales at zero a stage is its shortcuts: pooled, padded, and cut at one by hardtanh."""
    net = create_model("resnet20_1w1a", 10)
    for module in net.modules():
        if isinstance(module, BinaryConv2d):
            nn.init.zeros_(module.alpha)
    out = net.eval().observe(images())
    assert out.stem is not None
    torch.testing.assert_close(out.maps[0], out.stem)
    inner = out.maps[1][:, 8:24]
    torch.testing.assert_close(inner, nn.functional.avg_pool2d(out.stem, 2))
    assert not out.maps[1][:, :8].any()


@pytest.mark.parametrize("name", BINARY)
def test_no_margins(name: str) -> None:
    with pytest.raises(NotImplementedError, match="hardtanh"):
        create_model(name, 10).get_bn_before_relu()


def test_the_teacher_has_margins_and_folds() -> None:
    torch.manual_seed(0)
    net = create_model("resnet18_cifar", 10)
    assert [n.num_features for n in net.get_bn_before_relu()] == [64, 128, 256, 512]
    with torch.no_grad():
        net.train()(images(4))
        net.eval()
        folded = fold_batch_norms(net, images())
        torch.testing.assert_close(folded(images()), net(images()), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_folding_passes_binary_convolutions_over() -> None:
    torch.manual_seed(0)
    net = create_model("resnet20_1w1a", 10)
    with torch.no_grad():
        net.train()(images(8))
        net.eval()
        folded = fold_batch_norms(net, images())
        torch.testing.assert_close(folded(images()), net(images()), rtol=1e-3, atol=1e-3)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == 18  # all but the stem's


def test_compiles_to_one_graph_and_waits_for_no_number() -> None:
    """No graph break: nothing in a training step reads a tensor's value on the host."""
    torch.manual_seed(0)
    net = BinaryResNet(10, widths=(4, 8, 16), blocks=(1, 1, 1), shortcuts=2).train()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin.observe, backend="eager", fullgraph=True)
    want, got = net.observe(images(), preact=True), compiled(images(), preact=True)
    torch.testing.assert_close(got.logits, want.logits)


@pytest.mark.parametrize("name", BINARY)
def test_bf16_and_channels_last_run_and_stay_finite(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name, 10).to(memory_format=torch.channels_last)
    x = images(4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x)
    logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# --- methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list_methods())
def test_every_method_trains_a_binary_student(method: str) -> None:
    """One step of each stage moves latent weights, scales and batch norms, and leaves everything finite."""
    two_stages = "init_epochs" in method_class(method).settings()
    task = small_task(method, student="resnet20_1w1a", teacher="resnet8")
    if two_stages:
        first_stage_steps(task, steps=1)
    moved = moved_by(task.student, lambda: main_steps(task, steps=1))
    parameters = {name for name, _ in task.student.named_parameters()}
    # A bias before its batch norm's mean, and weights that are clamped, may stay: judge by whole layers.
    assert {name for name in parameters if name.endswith((".weight", ".alpha", "fc.bias"))} <= moved
    assert all(value.isfinite().all() for value in task.state_dict().values())


def test_a_step_tells_only_modules_with_a_schedule() -> None:
    task = small_task("kd", student="resnet20_1w1a", teacher="resnet8")
    task.start_epoch(301, 600)
    taus = [float(m.tau) for m in task.student.modules() if isinstance(m, BinaryConv2d)]
    assert taus == [pytest.approx(0.9028557)] * 18
    loss = task.train()(*small_batch()).loss
    assert loss.isfinite()

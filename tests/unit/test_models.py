"""The benchmark networks without reference numbers: table, initial distributions, errors, safe use of features."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from itrd.errors import UnknownNameError, UserError
from itrd.models import BENCHMARK_MODELS, create_model
from itrd.models._common import conv
from itrd.models.base import FeatureNet, Outputs

# Parameters at 100 classes, channels and sizes of the maps, size of the embedding, shape of the stem.
_SMALL = [(16, 32), (32, 16), (64, 8)]
_X4 = [(64, 32), (128, 16), (256, 8)]
_WRN_2 = [(32, 32), (64, 16), (128, 8)]
_VGG = [(128, 16), (256, 8), (512, 4), (512, 4)]
SIZES = {
    "resnet8": (83_892, _SMALL, 64, (16, 32)),
    "resnet14": (181_108, _SMALL, 64, (16, 32)),
    "resnet20": (278_324, _SMALL, 64, (16, 32)),
    "resnet32": (472_756, _SMALL, 64, (16, 32)),
    "resnet44": (667_188, _SMALL, 64, (16, 32)),
    "resnet56": (861_620, _SMALL, 64, (16, 32)),
    "resnet110": (1_736_564, _SMALL, 64, (16, 32)),
    "resnet8x4": (1_233_540, _X4, 256, (32, 32)),
    "resnet32x4": (7_433_860, _X4, 256, (32, 32)),
    "ResNet50": (23_705_252, [(256, 32), (512, 16), (1024, 8), (2048, 4)], 2048, (64, 32)),
    "wrn_16_1": (180_916, _SMALL, 64, (16, 32)),
    "wrn_16_2": (703_284, _WRN_2, 128, (16, 32)),
    "wrn_40_1": (569_780, _SMALL, 64, (16, 32)),
    "wrn_40_2": (2_255_156, _WRN_2, 128, (16, 32)),
    "vgg8": (3_965_028, _VGG, 512, (64, 32)),
    "vgg11": (9_277_284, _VGG, 512, (64, 32)),
    "vgg13": (9_462_180, _VGG, 512, (64, 32)),
    "vgg16": (14_774_436, _VGG, 512, (64, 32)),
    "vgg19": (20_086_692, _VGG, 512, (64, 32)),
    "MobileNetV2": (812_836, [(12, 16), (16, 8), (48, 4), (160, 2)], 1280, (16, 16)),
    "ShuffleV1": (949_258, [(240, 16), (480, 8), (960, 4)], 960, (24, 32)),
    "ShuffleV2": (1_355_528, [(116, 16), (232, 8), (464, 4)], 1024, (24, 32)),
}
# The cheapest member of each family.
FAMILIES = ["resnet8", "resnet8x4", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
FIXED_SIZE = ["resnet8", "wrn_16_1", "ShuffleV1", "ShuffleV2"]


def images(n: int = 2, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def parameter_count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- the table ---------------------------------------------------------------------------------------


def test_table_lists_the_benchmark_networks() -> None:
    assert sorted(BENCHMARK_MODELS) == sorted(SIZES)


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_and_shapes(name: str) -> None:
    count, maps, embedding, stem = SIZES[name]
    with torch.device("meta"):  # shapes only: no memory, no arithmetic
        net = create_model(name)
        out = net.observe(torch.empty(2, 3, 32, 32), preact=True)
    assert (net.arch, net.num_classes) == (name, 100)
    assert parameter_count(net) == count
    assert isinstance(out, Outputs)
    assert out.stem is not None
    assert out.stem.shape == (2, stem[0], stem[1], stem[1])
    assert [f.shape for f in out.maps] == [(2, c, side, side) for c, side in maps]
    assert out.embedding is not None
    assert out.embedding.shape == (2, embedding)
    assert out.logits.shape == (2, 100)


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ResNet50'"):
        create_model("resnet50")
    with pytest.raises(UnknownNameError, match="did you mean 'wrn_40_2'"):
        create_model("wrn-40-2")


@pytest.mark.parametrize("num_classes", [0, -1])
def test_too_few_classes(num_classes: int) -> None:
    with pytest.raises(UserError, match="at least one class"):
        create_model("resnet8", num_classes=num_classes)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_number_of_classes(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name, num_classes=10)
        assert net(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert net.num_classes == 10
    count, _, embedding, _ = SIZES[name]
    assert parameter_count(net) == count - 90 * (embedding + 1)


def test_import_does_not_load_torch() -> None:
    code = (
        "import sys, itrd.models as m; assert m.list_models(); assert 'torch' not in sys.modules; "
        "from itrd.models import FeatureNet, Outputs; assert 'torch' in sys.modules; "
        "assert FeatureNet is m.FeatureNet and Outputs.__name__ == 'Outputs'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute_of_the_package() -> None:
    import itrd.models

    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = itrd.models.no_such_thing


@pytest.mark.parametrize("depth", [3, 9])
def test_impossible_depth(depth: int) -> None:
    from itrd.models.resnet import ResNet
    from itrd.models.wrn import WideResNet

    with pytest.raises(ValueError, match="6n"):
        ResNet(10, depth=depth)
    with pytest.raises(ValueError, match="6n"):
        WideResNet(10, depth=depth, widening=1)


# --- initial weights ---------------------------------------------------------------------------------


def assert_sample(x: Tensor, std: float, *, uniform: bool) -> None:
    """Mean 0, the given deviation, and the right family, six standard errors wide."""
    x = x.detach().double()
    n = x.numel()
    assert abs(float(x.mean())) < 6 * std / math.sqrt(n)
    # Relative error of a variance: (kurtosis - 1) / n, kurtosis 1.8 for uniform and 3 for normal.
    assert abs(float(x.var(unbiased=False)) / std**2 - 1) < 6 * math.sqrt((0.8 if uniform else 2.0) / n)
    bound = math.sqrt(3) * std
    if uniform:
        assert float(x.abs().max()) <= bound * (1 + 1e-6)
    elif n > 500:  # 8 per cent of a normal sample lie outside
        assert float((x.abs() > bound).double().mean()) > 0.04


@pytest.mark.parametrize("name", FAMILIES)
def test_initial_distributions(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name)
    default_init = name.startswith("Shuffle")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            area = math.prod(module.kernel_size)
            if default_init:
                fan_in = area * module.in_channels // module.groups
                assert_sample(module.weight, 1 / math.sqrt(3 * fan_in), uniform=True)
            else:
                std = math.sqrt(2 / (area * module.out_channels))
                assert_sample(module.weight, std, uniform=False)
            assert (module.bias is not None) == (name == "vgg8")
            if module.bias is not None:
                assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)
            assert (module.weight == 1).all()
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            default_std = 1 / math.sqrt(3 * module.in_features)
            if name in ("vgg8", "MobileNetV2"):
                assert_sample(module.weight, 0.01, uniform=False)
            else:
                assert_sample(module.weight, default_std, uniform=True)
            if name in ("vgg8", "MobileNetV2", "wrn_16_1"):
                assert not module.bias.any()
            else:
                assert_sample(module.bias, default_std, uniform=True)


# --- features ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("preact", [False, True])
def test_returned_features_are_not_modified_afterwards(name: str, preact: bool) -> None:
    """Returned tensors are what a run without any in-place operation gives, and no two share memory."""
    torch.manual_seed(0)
    net = create_model(name).train()
    reference = copy.deepcopy(net)
    features, logits = net(images(4), is_feat=True, preact=preact)
    versions = [(f, f._version) for f in features]
    storages = {f.untyped_storage().data_ptr() for f in features}
    assert len(storages) == len(features)
    before = [f.detach().clone() for f in features]
    # A backward pass through all of them would complain about a saved tensor changed in place.
    (logits.sum() + sum(f.square().mean() for f in features)).backward()
    assert all(f._version == version for f, version in versions)
    for f, value in zip(features, before, strict=True):
        assert torch.equal(f, value)

    # Without any change in place the features must be the same numbers.
    relu = torch.nn.functional.relu
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: relu(x))
        expected, expected_logits = reference(images(4), is_feat=True, preact=preact)
    assert torch.equal(logits, expected_logits)
    for f, g in zip(features, expected, strict=True):
        assert torch.equal(f, g)


@pytest.mark.parametrize("name", FAMILIES)
def test_preact_is_the_input_of_the_relu(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name).eval()
    with torch.no_grad():
        post, pre = net.observe(images()), net.observe(images(), preact=True)
    assert torch.equal(post.logits, pre.logits)
    assert post.stem is not None
    assert pre.stem is not None
    assert torch.equal(post.stem, pre.stem)
    for f, p in zip(post.maps, pre.maps, strict=True):
        assert (p < 0).any()
        if name == "MobileNetV2":
            assert torch.equal(f, p)
        elif name == "ShuffleV2":  # not shuffled: the halves lie side by side, the first rectified
            kept, q = p.chunk(2, dim=1)
            assert (kept >= 0).all()
            assert torch.equal(f[:, 0::2], kept)
            assert torch.equal(f[:, 1::2], q.relu())
        elif name != "wrn_16_1":
            assert torch.equal(f, p.relu())
        else:
            assert (f < 0).any()


def test_wrn_statistics_are_updated_twice_only_with_preact() -> None:
    net = create_model("wrn_16_1").train()
    first, second, third = net.get_bn_before_relu()
    net.observe(images())
    net(images(), preact=True)  # no effect without is_feat
    assert int(first.num_batches_tracked) == int(second.num_batches_tracked) == 2
    net.observe(images(), preact=True)
    assert int(first.num_batches_tracked) == int(third.num_batches_tracked) == 4
    assert int(net.get_submodule("block1.layer.0.bn1").num_batches_tracked) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FIXED_SIZE)
@pytest.mark.parametrize("size", [16, 64])
def test_fixed_window_refuses_other_image_sizes(name: str, size: int) -> None:
    with torch.device("meta"):
        net = create_model(name).eval()
        with pytest.raises(ValueError, match="takes 32x32 images"):
            net(torch.empty(1, 3, size, size))


def test_vgg_pools_once_more_at_height_64() -> None:
    with torch.device("meta"):
        net = create_model("vgg8")
        sides = {size: net.observe(torch.empty(1, 3, size, size)).maps[-1].shape[-1] for size in (32, 48, 64)}
    assert sides == {32: 4, 48: 6, 64: 4}


# --- surroundings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_state_dict_without_counters_loads(name: str) -> None:
    """Checkpoints written before torch 0.4.1 have no num_batches_tracked."""
    state = create_model(name).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    net = create_model(name)
    net.load_state_dict(old, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_and_autocast(name: str) -> None:
    torch.manual_seed(0)
    net: FeatureNet = create_model(name).eval()
    x = images()
    with torch.no_grad():
        expected = net.observe(x, preact=True)
        net = net.to(memory_format=torch.channels_last)
        got = net.observe(x.to(memory_format=torch.channels_last), preact=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net.observe(x, preact=True)
    for f, g in zip((expected.logits, *expected.maps), (got.logits, *got.maps), strict=True):
        torch.testing.assert_close(g, f, rtol=1e-4, atol=1e-4 * float(f.abs().max()))
    assert half.logits.dtype == torch.bfloat16
    error = (half.logits.float() - expected.logits).abs().max()
    assert float(error) < 0.1 * float(expected.logits.abs().max())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "ResNet50"])
def test_compiles_to_one_graph(name: str) -> None:
    """No graph break, so that ``torch.compile`` and CUDA graphs can take a whole training step."""
    torch.manual_seed(0)
    net = create_model(name).train()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin.observe, backend="eager", fullgraph=True)
    want, got = net.observe(images(), preact=True), compiled(images(), preact=True)
    torch.testing.assert_close(got.logits, want.logits)
    for (key, a), b in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


@pytest.mark.parametrize(("size", "stride", "kernel"), [(8, 2, 3), (7, 2, 3), (9, 3, 5), (4, 2, 1)])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_depthwise_convolutions_with_a_stride_train_as_ever(
    size: int, stride: int, kernel: int, form: torch.memory_format
) -> None:
    layer = conv(6, 6, kernel, stride, groups=6)
    plain = nn.Conv2d(6, 6, kernel, stride, padding=kernel // 2, groups=6, bias=False)
    # Small whole numbers, which bf16 holds exactly: so are the sums of either way, in whatever order.
    with torch.no_grad():
        for net in (layer, plain):
            net.weight.copy_(torch.arange(net.weight.numel()).view_as(net.weight) % 3)
    x = torch.randint(0, 3, (2, 6, size, size)).float()
    found = []
    for net in (layer.train(), plain):
        given = x.contiguous(memory_format=form).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = net(given)
        (out * (torch.arange(out.numel()).view_as(out) % 2)).sum().backward()
        assert out.dtype == torch.bfloat16
        found.append((out, given.grad, net.weight.grad))
    assert type(found[0][0].grad_fn) is not type(found[1][0].grad_fn)  # two ways indeed
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert found[0][0].is_contiguous(memory_format=form)
    assert type(layer(x).grad_fn) is type(plain(x).grad_fn)  # fp32 and evaluation go the usual way
    with torch.autocast("cpu", torch.bfloat16):
        assert type(layer.eval()(x).grad_fn) is type(plain(x).grad_fn)


@pytest.mark.parametrize("side", [16, 24, 32])
def test_mobilenetv2_pools_a_last_map_that_fills_its_window_or_does_not(side: int) -> None:
    net = create_model("MobileNetV2").eval()
    out = net.observe(torch.randn(2, 3, side, side))
    last = net.conv2(out.maps[-1])
    assert last.shape[-1] == (1 if side == 16 else 2)
    assert torch.allclose(out.embedding, last.mean((2, 3)), atol=1e-6)
    with pytest.raises(ValueError, match="at most 2x2, but it is 3x3"):
        net(torch.zeros(2, 3, 40, 40))

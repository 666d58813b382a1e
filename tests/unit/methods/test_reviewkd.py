"""ReviewKD: its loss against loops over cells, its fusion step by step, sizes of the published pairs, warm-up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from itrd.errors import UserError
from itrd.methods import Batch, create_method
from itrd.methods.reviewkd import hcl
from itrd.models import create_model
from itrd.models.base import Outputs
from method_tools import main_steps, setup_for, small_batch, small_task


def cells(f: Tensor, size: int) -> list[list[float]]:
    """Means over the cells of a size x size grid, as adaptive pooling bounds them, per sample and channel."""
    height = f.shape[2]
    bounds = [(i * height // size, -(-(i + 1) * height // size)) for i in range(size)]
    return [
        [float(image[top:bottom, left:right].mean()) for top, bottom in bounds for left, right in bounds]
        for image in f.flatten(0, 1)
    ]


def literal(s: Tensor, t: Tensor) -> float:
    def mse(a: list[list[float]], b: list[list[float]]) -> float:
        squares = [(x - y) ** 2 for u, v in zip(a, b, strict=True) for x, y in zip(u, v, strict=True)]
        return sum(squares) / len(squares)

    height = s.shape[2]
    total, divisor, weight = mse(cells(s, height), cells(t, height)), 1.0, 1.0
    for size in (4, 2, 1):
        if size < height:
            weight /= 2
            total += weight * mse(cells(s, size), cells(t, size))
            divisor += weight
    return total / divisor


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8])
def test_hcl(height: int) -> None:
    torch.manual_seed(height)
    s, t = torch.randn(2, 2, 3, height, height, dtype=torch.float64)
    assert hcl(s, t).item() == pytest.approx(literal(s, t), rel=1e-12)


@pytest.mark.parametrize(
    ("height", "divisor"), [(1, 1), (2, 1.5), (3, 1.75), (4, 1.75), (5, 1.875), (32, 1.875)]
)
def test_divisors(height: int, divisor: float) -> None:
    """A constant difference counts once at each size."""
    assert hcl(torch.ones(1, 1, height, height), torch.zeros(1, 1, height, height)).item() == pytest.approx(1)
    s = torch.zeros(1, 1, height, height)
    s[..., 0, 0] = height  # mean square 1
    pools = [size for size in (4, 2, 1) if size < height]
    weights = [0.5, 0.25, 0.125][: len(pools)]
    pooled = [F.adaptive_avg_pool2d(s, size).square().mean() for size in pools]
    expected = (1 + sum(w * p for w, p in zip(weights, pooled, strict=True))) / divisor
    assert float(hcl(s, torch.zeros_like(s))) == pytest.approx(float(expected))


def outputs(shapes: list[tuple[int, int]], width: int, seed: int, batch: int = 3) -> Outputs:
    g = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(batch, c, h, h, generator=g, dtype=torch.float64) for c, h in shapes)
    embedding = torch.randn(batch, width, generator=g, dtype=torch.float64)
    return Outputs(torch.zeros(batch, 2, dtype=torch.float64), embedding, maps)


def test_fusion_step_by_step() -> None:
    student = outputs([(3, 8), (5, 4)], 6, seed=1)
    teacher = outputs([(4, 16), (7, 4)], 9, seed=2)
    torch.manual_seed(0)
    method = create_method("reviewkd")
    method.setup(setup_for(student, teacher))
    method.double()
    deep, middle, shallow = method.fusions

    def nearest(x: Tensor, size: int) -> Tensor:
        places = torch.arange(size) * x.shape[2] // size
        return x[:, :, places][:, :, :, places]

    x0 = deep.conv1(student.embedding[:, :, None, None])
    x1 = middle.conv1(student.maps[1])
    r1 = nearest(x0, 4)
    g1 = middle.att_conv(torch.cat([x1, r1], 1))
    x1 = x1 * g1[:, 0][:, None] + r1 * g1[:, 1][:, None]
    x2 = shallow.conv1(student.maps[0])
    r2 = nearest(x1, 8)
    g2 = shallow.att_conv(torch.cat([x2, r2], 1))
    x2 = nearest(x2 * g2[:, 0][:, None] + r2 * g2[:, 1][:, None], 16)
    fused = [shallow.conv2(x2), middle.conv2(x1), deep.conv2(x0)]
    targets = [*teacher.maps, teacher.embedding[:, :, None, None]]
    expected = sum(hcl(s, t).item() for s, t in zip(fused, targets, strict=True))
    labels = torch.zeros(3, dtype=torch.long)
    terms = method(student, teacher, Batch(labels, labels))
    assert terms["reviewkd"].item() == pytest.approx(expected, rel=1e-12)


def test_initial_weights() -> None:
    method = create_method("reviewkd")
    torch.manual_seed(0)
    method.setup(setup_for(outputs([(24, 4)], 48, 0), outputs([(30, 4)], 36, 0)))
    for fusion in method.fusions:
        for block in (fusion.conv1, fusion.conv2):
            weight = block[0].weight
            bound = (3 / weight[0].numel()) ** 0.5
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert method.fusions[0].att_conv is None


# Channels of the published tables, shallow to deep; the last one is the pooled feature.
RESNET, RESNET4 = [16, 32, 64, 64], [64, 128, 256, 256]
WRN1, WRN2 = RESNET, [32, 64, 128, 128]
PAIRS = {
    ("resnet8x4", "resnet32x4"): (RESNET4, RESNET4),
    ("resnet20", "resnet56"): (RESNET, RESNET),
    ("wrn_16_2", "wrn_40_2"): (WRN2, WRN2),
    ("wrn_40_1", "wrn_40_2"): (WRN1, WRN2),
    ("ShuffleV1", "wrn_40_2"): ([240, 480, 960, 960], WRN2),
    ("ShuffleV2", "resnet32x4"): ([116, 232, 464, 1024], RESNET4),
    ("vgg8", "vgg13"): ([128, 256, 512, 512, 512], [128, 256, 512, 512, 512]),
    ("MobileNetV2", "ResNet50"): ([12, 16, 48, 160, 1280], [256, 512, 1024, 2048, 2048]),
}


@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids="-".join)
def test_parameter_counts_of_the_published_pairs(student: str, teacher: str) -> None:
    with torch.no_grad():
        nets = [
            create_model(name, 10).eval().observe(torch.zeros(1, 3, 32, 32)) for name in (student, teacher)
        ]
    method = create_method("reviewkd")
    method.setup(setup_for(*nets, labels=torch.arange(2)))
    channels_s, channels_t = PAIRS[student, teacher]
    mid = min(512, channels_s[-1])
    convolutions = sum(mid * c_s + 9 * mid * c_t for c_s, c_t in zip(channels_s, channels_t, strict=True))
    norms = sum(2 * mid + 2 * c_t for c_t in channels_t)
    gates = (len(channels_s) - 1) * (4 * mid + 2)
    assert sum(p.numel() for p in method.parameters()) == convolutions + norms + gates


def test_warm_up() -> None:
    method = create_method("reviewkd")
    terms = {"reviewkd": torch.tensor(3.0)}
    assert method.loss(terms) == 3  # a loop that never says which epoch it is
    for epoch, factor in ((1, 0.0), (2, 0.05), (11, 0.5), (21, 1.0), (240, 1.0)):
        method.start_epoch(epoch)
        assert method.loss(terms).item() == pytest.approx(3 * factor)
    assert "warmup" not in method.state_dict()
    method = create_method("reviewkd", warmup_epochs=0)
    method.start_epoch(1)
    assert method.loss(terms) == 3


def test_trains_in_a_task() -> None:
    task = small_task("reviewkd", "ShuffleV2", "wrn_16_1")
    task.objective.start_epoch(5)
    before = {key: value.clone() for key, value in task.objective.state_dict().items()}
    main_steps(task)
    after = task.objective.state_dict()
    assert all(not torch.equal(value, before[key]) for key, value in after.items())
    images, batch = small_batch()
    output = task(images, batch)
    factor, weight = 4 / 20, 5
    expected = output.terms["ce"] + weight * factor * output.terms["reviewkd"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_inputs(autocast: bool) -> None:
    student = outputs([(3, 8), (5, 4)], 6, seed=1)
    teacher = outputs([(4, 16), (7, 4)], 9, seed=2)
    method = create_method("reviewkd")
    method.setup(setup_for(student, teacher))

    def half(o: Outputs) -> Outputs:
        return Outputs(o.logits.bfloat16(), o.embedding.bfloat16(), tuple(m.bfloat16() for m in o.maps))

    labels = torch.zeros(3, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = method.loss(method(half(student), half(teacher), Batch(labels, labels)))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_unequal_numbers_of_maps() -> None:
    with pytest.raises(UserError, match="one by one"):
        small_task("reviewkd", "resnet8", "vgg8")

"""Feature maps of networks that know nothing of this package."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

import itrd
from foreign_nets import ChannelsLast, Tokens, TwoStages
from itrd.engine.task import DistillTask
from itrd.errors import TrainingError, UserError
from itrd.methods import Batch, create_objective
from itrd.models import create_model
from itrd.models.observe import TapObserver, observer
from itrd.models.taps import match_taps, trace


def images(n: int = 2, size: int | tuple[int, int] = 32) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0))


# --- automatic choices -----------------------------------------------------------------------------------

CHOICES = {
    "torchvision:resnet18": (64, ["layer1", "layer2", "layer3", "layer4"], [64, 128, 256, 512]),
    "torchvision:mobilenet_v2": (
        64,
        ["features.3", "features.6", "features.13", "features.18"],
        [24, 32, 96, 1280],
    ),
    "torchvision:vgg11": (
        64,
        ["features.9", "features.14", "features.19", "features.20"],
        [256, 512, 512, 512],
    ),
    "torchvision:shufflenet_v2_x0_5": (64, ["maxpool", "stage2", "stage3", "conv5"], [24, 48, 96, 1024]),
    "timm:resnet18": (64, ["layer1", "layer2", "layer3", "layer4"], [64, 128, 256, 512]),
    "timm:mobilenetv3_small_050": (64, ["blocks.0", "blocks.1", "blocks.3", "blocks.5"], [8, 16, 24, 288]),
    "timm:efficientnet_b0": (64, ["blocks.1", "blocks.2", "blocks.4", "blocks.6"], [24, 40, 112, 320]),
    "timm:convnext_atto": (64, [f"stages.{i}" for i in range(4)], [40, 80, 160, 320]),
    "timm:deit_tiny_distilled_patch16_224": (224, [f"blocks.{i}" for i in (2, 5, 8, 11)], [192] * 4),
}


@pytest.mark.parametrize("spec", list(CHOICES))
def test_automatic_choice_of_libraries(spec: str) -> None:
    size, paths, channels = CHOICES[spec]
    library, name = spec.split(":")
    with torch.device("meta"):  # shapes only
        net = (
            timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
        )
        found = match_taps(Quads(), net, torch.empty(2, 3, size, size)).teacher
    assert list(found.names) == paths
    assert [shape[0] for shape in found.shapes] == channels
    sides = [shape[1] for shape in found.shapes]
    assert sides == ([14] * 4 if "deit" in name else [16, 8, 4, 2])


class Quads(nn.Module):
    """A student with four maps, whatever the size of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 10)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> object:
        f = x.mean(dim=1, keepdim=True)
        logits = self.head(f.mean(dim=(2, 3)))
        return ([f, f, f, f, f, f.mean(dim=(2, 3))], logits) if is_feat else logits


SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
SWIN = {"patch_size": 2, "embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 1, 2], "window_size": 4}
WIDTHS = {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("config", "pattern", "shapes"),
    [
        (transformers.ViTConfig(image_size=32, patch_size=8, **SMALL), r"vit\..*\.\d", [(16, 4, 4)] * 4),
        (transformers.DeiTConfig(image_size=32, patch_size=8, **SMALL), r"deit\..*\.\d", [(16, 4, 4)] * 4),
        (
            transformers.SwinConfig(image_size=32, **SWIN),
            r"swin\.encoder\.layers\.\d\.blocks\.\d",
            [(8, 16, 16), (16, 8, 8), (32, 4, 4)],
        ),
        (
            transformers.ResNetConfig(embedding_size=4, layer_type="basic", **WIDTHS),
            r"resnet\.encoder\.stages\.\d",
            [(4, 8, 8), (8, 4, 4), (12, 2, 2)],
        ),
    ],
    ids=["vit", "deit", "swin", "resnet"],
)
def test_automatic_choice_of_transformers(config, pattern: str, shapes: list[tuple[int, ...]]) -> None:
    config.architectures = []
    torch.manual_seed(0)
    net = transformers.AutoModelForImageClassification.from_config(config).eval()
    x = images()
    found = match_taps(Quads(), net, x).teacher
    assert all(re.fullmatch(pattern, name) for name in found.names)
    assert list(found.shapes) == shapes
    with torch.no_grad():
        seen, plain = found.observe(x, False), net(x).logits
    assert torch.equal(seen.logits, plain)
    assert [tuple(f.shape) for f in seen.maps] == [(2, *shape) for shape in shapes]


def test_swin_of_torchvision_gives_maps_with_channels_first() -> None:
    torch.manual_seed(0)
    net = torchvision.models.SwinTransformer([2, 2], 8, [1, 1, 1], [1, 1, 2], [4, 4], num_classes=10).eval()
    found = match_taps(Quads(), net, images()).teacher
    assert list(found.shapes) == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    kept: list[Tensor] = []
    handle = net.get_submodule(found.names[0]).register_forward_hook(lambda m, i, out: kept.append(out))
    with torch.no_grad():
        maps = found.observe(images(), False).maps
    handle.remove()
    assert torch.equal(maps[0], kept[0].permute(0, 3, 1, 2))


def test_images_that_are_not_square() -> None:
    net = ChannelsLast()
    found = match_taps(Quads(), net, images(2, (32, 24)), teacher_taps=["norm"], student_taps=None)
    assert found.teacher.shapes == ((6, 8, 6),)
    assert trace(net, images(2, (32, 24))).taps["conv"].shape == (6, 8, 6)


# --- what a tap gives ------------------------------------------------------------------------------------


def test_tokens_become_maps_row_by_row_without_the_first() -> None:
    torch.manual_seed(0)
    net = Tokens(prefix=3, depth=1).eval()
    tap = trace(net, images(2, (32, 16))).taps["blocks.0"]
    assert (tap.layout, tap.prefix, tap.shape) == ("tokens", 3, (8, 4, 2))
    with torch.no_grad():
        (seen,) = TapObserver(net, [tap])(images(2, (32, 16)), False).maps
        patches = net.patches(images(2, (32, 16)))
        tokens = torch.cat([net.prefix.expand(2, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        mixed = nn.functional.gelu(net.blocks[0].mix(tokens.mean(dim=1)))
    # The block adds one vector to every token, so that the map is the patches' plus this vector everywhere.
    assert torch.equal(seen, patches + mixed[:, :, None, None])


def test_an_output_that_is_changed_afterwards_is_copied() -> None:
    torch.manual_seed(0)
    net = TwoStages().eval()
    taps = trace(net, images()).taps
    assert taps["early.1"].overwritten  # the ReLU after it works in place
    assert not taps["early.2"].overwritten
    with torch.no_grad():
        before, after = TapObserver(net, [taps["early.1"], taps["early.2"]])(images(), False).maps
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)


def test_hooks_live_for_one_pass_and_the_mode_stays() -> None:
    net = TwoStages().train()
    net.late.eval()
    found = match_taps(net, create_model("resnet8", 10), images(), student_taps=["early", "late"])
    assert (net.training, net.early.training, net.late[0].training) == (True, True, False)
    found.student.observe(images(), False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_gradients_flow_and_autocast_is_respected() -> None:
    torch.manual_seed(0)
    net = TwoStages()
    observe = match_taps(
        net, create_model("resnet8", 10), images(), student_taps=["early", "late"]
    ).student.observe
    observe(images(), False).maps[0].square().mean().backward()
    assert net.early[0].weight.grad.abs().sum() > 0
    assert net.late[0].weight.grad is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert observe(images(), False).maps[1].dtype == torch.bfloat16


def test_a_compiled_network_is_read_through_the_original() -> None:
    torch.manual_seed(0)
    net = TwoStages().eval()
    compiled = torch.compile(net, backend="eager")
    for _ in range(2):
        seen = observer(compiled)(images(), False)
        assert torch.equal(seen.embedding, net.late(net.early(images())).mean(dim=(2, 3)))
    assert match_taps(compiled, net, images(), ["early"], ["late"]).student.names == ("early",)


def test_the_embedding_may_be_named() -> None:
    torch.manual_seed(0)
    net, teacher = TwoStages().eval(), Tokens().eval()
    found = match_taps(net, teacher, images(), ["embedding=head", "early"], None)
    with torch.no_grad():
        seen = found.student.observe(images(), False)
    assert torch.equal(seen.embedding, seen.logits)
    assert found.student.names == ("early",)
    with pytest.raises(UserError, match="embedding=early gives no vector"):
        match_taps(net, teacher, images(), ["embedding=early"], None)


# --- pairs -----------------------------------------------------------------------------------------------


def test_the_longer_list_is_thinned_by_relative_depth() -> None:
    found = match_taps(create_model("resnet8", 10), Tokens(depth=6), images())
    assert found.teacher.names == ("blocks.1", "blocks.3", "blocks.5")
    assert found.student.names == ("map 1", "map 2", "map 3")
    assert found.thinned
    # A benchmark network may be the longer one, too.
    found = match_taps(TwoStages(), create_model("resnet8", 10), images())
    assert found.student.names == ("early", "late")
    assert found.teacher.names == ("map 2", "map 3")
    with torch.no_grad():
        assert [f.shape[1] for f in found.teacher.observe(images(), False).maps] == [32, 64]


def test_table() -> None:
    text = itrd.describe_taps(create_model("resnet8", 10), TwoStages(8), images(), student_taps=["early"])
    assert text == (
        "pair  student  C x H x W  teacher  C x H x W\n"
        "1     early    8x16x16    map 3    64x8x8\n"
        "student's maps: given; teacher's maps: its own; paired by relative depth"
    )


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (["earli"], None, r"the student TwoStages has no module 'earli'; did you mean 'early'"),
        (["zzzzzz"], None, r"no module 'zzzzzz'; it has early, late, head"),
        (["head"], None, r"tap 'head' gives a tensor of shape \(2, 10\); a feature map has the axes"),
        (
            ["early", "late"],
            ["blocks.0"],
            r"have 2 and 1 \(student: early, late; teacher: blocks.0\); leave some out",
        ),
        (["early", "late", "early.0", "early.1", "late.0", "late.1", "late.2"], None, r"have 7 and 6"),
    ],
)
def test_wrong_taps_are_named(student: list[str], teacher: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match_taps(TwoStages(), Tokens(), images(), student, teacher)


def test_images_that_a_network_does_not_take() -> None:
    with pytest.raises(
        UserError, match=r"the teacher VisionTransformer does not take images of 3x32x32: .*--teacher_size"
    ):
        match_taps(TwoStages(), timm.create_model("vit_tiny_patch16_224", depth=1), images(4))


# --- with methods ----------------------------------------------------------------------------------------

WORKING = [
    "hint",
    "attention",
    "similarity",
    "vid",
    "factor(init_epochs=0)",
    "nst",
    "reviewkd",
    "itrd",
    "kd",
    "rkd",
]
REFUSED = {
    "abound": "has no get_feat_modules",
    "fsp": "reads stem, and the student does not provide them",
    "kdsvd": "with the same channels",
    "ofd": "does not tell its batch norms",
}


def small_task(method: str, student: nn.Module, teacher: nn.Module) -> DistillTask:
    taps = [
        ["0", "1"] if isinstance(net, nn.Sequential) and len(net) == 3 else None for net in (student, teacher)
    ]
    task = DistillTask(student, teacher, create_objective(method), student_taps=taps[0], teacher_taps=taps[1])
    task.setup(images(4), 10, torch.arange(20) % 10)
    return task


def nets(kind: str) -> tuple[nn.Module, nn.Module]:
    """Maps of 16 and 8 beside 4, 14 and odd sizes beside 8, tokens on either side."""
    torch.manual_seed(0)
    odd = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 12, (5, 3)), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    )
    return {
        "conv-tokens": (TwoStages(), Tokens()),
        "tokens-conv": (Tokens(), TwoStages()),
        "smaller-odd": (TwoStages(), odd),
        "odd-smaller": (odd, create_model("resnet8", 10)),
    }[kind]


@pytest.mark.parametrize("kind", ["conv-tokens", "tokens-conv", "smaller-odd", "odd-smaller"])
@pytest.mark.parametrize("method", WORKING)
def test_methods_on_maps_of_other_sizes(method: str, kind: str) -> None:
    task = small_task(method, *nets(kind))
    labels = torch.arange(4)
    output = task.train()(images(4), Batch(labels, labels))
    output.loss.backward()
    assert output.loss.isfinite()
    terms = {name: value for name, value in output.terms.items() if name not in ("loss", "ce")}
    assert terms
    assert all(value > 0 for name, value in terms.items() if name != "itrd.corr")


@pytest.mark.parametrize("method", list(REFUSED))
def test_methods_that_say_why_not(method: str) -> None:
    with pytest.raises(UserError, match=REFUSED[method]):
        small_task(method, *nets("conv-tokens")).objective.first_stages()


@pytest.mark.parametrize("method", ["attention", "vid", "nst", "hint", "reviewkd"])
def test_sizes_8_and_14(method: str) -> None:
    """A student's (B, 16, 8, 8) beside a teacher's (B, 32, 14, 14)."""

    def net(width: int, side: int) -> nn.Module:
        stage = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(3, width, 1), nn.ReLU())
        return nn.Sequential(stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    task = DistillTask(
        net(16, 8),
        net(32, 14),
        create_objective("hint(hint_layer=1)" if method == "hint" else method),
        student_taps=["0"],
        teacher_taps=["0"],
    )
    task.setup(images(4), 10, torch.arange(20))
    assert task.taps.rows() == [
        {"student": "0", "student_shape": [16, 8, 8], "teacher": "0", "teacher_shape": [32, 14, 14]}
    ]
    labels = torch.arange(4)
    assert task(images(4), Batch(labels, labels)).loss.isfinite()


# --- bad input -------------------------------------------------------------------------------------------


def test_what_networks_may_return() -> None:
    x = images(4)
    with torch.no_grad():
        plain = Tokens().eval()
        for wrap in (lambda z: {"logits": z}, lambda z: transformers.utils.ModelOutput(logits=z)):
            plain.wrap = wrap
            assert observer(plain)(x, False).logits.shape == (4, 10)
    for wrap in (lambda z: (z, z), lambda z: {"prediction": z}):
        with pytest.raises(UserError, match=r"must return logits.*wrap it in a module"):
            small_task("kd", TwoStages(), Tokens(wrap=wrap))


def test_a_teacher_that_is_not_finite() -> None:
    teacher = TwoStages()
    nn.init.constant_(teacher.head.weight, torch.nan)
    with pytest.raises(
        UserError, match=r"the teacher TwoStages gives numbers that are not finite .*\(logits\)"
    ):
        small_task("itrd", TwoStages(), teacher)


def test_a_student_of_too_few_classes(tiny: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"the student TwoStages gives logits of shape \(4, 7\) .* has 10 classes"
    ):
        itrd.distill(TwoStages(), TwoStages(classes=7), "digits", "itrd", **tiny)
    with pytest.raises(UserError, match="the student VisionTransformer does not take images of 3x32x32"):
        itrd.train("timm:vit_tiny_patch16_224", "digits", **tiny)


def test_a_teacher_that_fails_later_is_named(tiny: dict[str, Any]) -> None:
    class Failing(TwoStages):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.nan if len(x) == 16 else x)  # in the training steps

    with pytest.raises(TrainingError, match=r"epoch 1, step 1: .* first at the output of teacher\.early\.0"):
        itrd.distill(Failing(), TwoStages(), "digits", "kd", **tiny)


def test_networks_that_share_parameters() -> None:
    teacher = TwoStages()
    student = TwoStages()
    student.early = teacher.early
    with pytest.raises(UserError, match=r"share parameters \(early.0.weight\)"):
        small_task("kd", student, teacher)
    assert all(p.requires_grad for p in teacher.parameters())


def test_a_network_without_a_linear_layer_learns_from_logits() -> None:
    student = nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten())
    labels = torch.arange(4)
    assert small_task("kd", student, TwoStages())(images(4), Batch(labels, labels)).loss.isfinite()
    with pytest.raises(UserError, match="no linear layer"):
        small_task("rkd", student, TwoStages())

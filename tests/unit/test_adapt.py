"""A teacher of other images and other classes than the student's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import itrd
from foreign_nets import TwoStages
from itrd.engine.config import DistillConfig
from itrd.engine.networks import TrainedNetwork
from itrd.engine.run import prepare_distill
from itrd.engine.table import table_key
from itrd.errors import UserError
from itrd.models import create_model
from itrd.models.adapt import Adapted
from itrd.models.observe import observer
from itrd.models.taps import match_taps

OURS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
THEIRS = {"net_mean": (0.485, 0.456, 0.406), "net_std": (0.229, 0.224, 0.225)}


class Looking(nn.Module):
    """Keeps the images it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.head(x.mean(dim=(2, 3)))


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("size", [24, 8])
def test_undo_resize_normalise(size: int) -> None:
    """Against Pillow's antialiased bilinear resizing of the pixels themselves."""
    pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    net = Looking()
    Adapted(net, **OURS, **THEIRS, size=size)(normalised(pixels, **OURS))
    channels = [
        np.asarray(Image.fromarray(c.numpy(), mode="F").resize((size, size), Image.Resampling.BILINEAR))
        for c in pixels.flatten(0, 1)
    ]
    resized = torch.from_numpy(np.stack(channels)).view(2, 3, size, size)
    expected = normalised(resized, THEIRS["net_mean"], THEIRS["net_std"])
    torch.testing.assert_close(net.seen, expected, rtol=0, atol=2e-6)


def test_equal_images_pass_bit_by_bit() -> None:
    x = torch.randn(2, 3, 12, 12)
    net = Looking()
    Adapted(net, **OURS, size=12)(x)
    assert torch.equal(net.seen, x)


def test_features_and_taps_lie_behind_the_adapter() -> None:
    torch.manual_seed(0)
    own, foreign = create_model("resnet8", 10), TwoStages()
    x = torch.randn(2, 3, 16, 16)
    for net in (own, foreign):
        adapted = Adapted(net.eval(), **OURS, **THEIRS, size=32).eval()
        with torch.no_grad():
            expected = observer(net)(adapted.adapt(x), False)
            seen = observer(adapted)(x, False)
        assert torch.equal(seen.embedding, expected.embedding)
    found = match_taps(TwoStages(), adapted, torch.randn(2, 3, 16, 16), teacher_taps=["early", "late"])
    assert found.teacher.shapes == ((4, 16, 16), (8, 8, 8))
    assert [f.shape[2] for f in found.teacher.observe(x, False).maps] == [16, 8]


def test_a_table_of_outputs_knows_the_adapter() -> None:
    data = itrd.load_dataset("digits").subset(20, 10)

    class Images:
        device, channels_last = torch.device("cpu"), False

    net = TwoStages()
    digests = {
        table_key(Adapted(net, **OURS, **more), data, Images(), "fp32", 4)["teacher"]
        for more in ({}, {"size": 16}, {"size": 24}, THEIRS)
    }
    assert len(digests) == 4


# --- in a run --------------------------------------------------------------------------------------------


def test_settings_reach_the_teacher(tiny: dict[str, Any]) -> None:
    teacher = Looking()
    settings = {"teacher_size": 20, "teacher_mean": [0.5] * 3, "teacher_std": [0.25] * 3}
    result = itrd.distill(teacher, TwoStages(), "digits", "kd", **{**tiny, "epochs": 1}, **settings)
    assert teacher.seen.shape[1:] == (3, 20, 20)
    assert result.record["teacher"]["images"] == {"size": 20, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert result.record["settings"]["teacher_size"] == 20
    with pytest.raises(
        UserError, match="teacher_mean and teacher_std need a number for each of the 3 channels"
    ):
        itrd.distill(Looking(), TwoStages(), "digits", "kd", **tiny, teacher_mean=[0.5])
    with pytest.raises(UserError, match="teacher_std must be positive"):
        itrd.distill(Looking(), TwoStages(), "digits", "kd", **tiny, teacher_std=[0.0] * 3)
    with pytest.raises(UserError, match="teacher_size must be at least 1"):
        itrd.distill(Looking(), TwoStages(), "digits", "kd", **tiny, teacher_size=0)


def test_a_teacher_that_fails_on_the_students_images_says_what_to_do(tiny: dict[str, Any]) -> None:
    class Fixed(TwoStages):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] == 48, "48 pixels only"
            return super().forward(x)

    with pytest.raises(
        UserError, match=r"the teacher Fixed does not take .*48 pixels only; .*add --teacher_size"
    ):
        itrd.distill(Fixed(), TwoStages(), "digits", "kd", **tiny)
    assert (
        itrd.distill(
            Fixed(), TwoStages(), "digits", "itrd", **{**tiny, "epochs": 1}, teacher_size=48
        ).last.epoch
        == 1
    )


@pytest.mark.parametrize("method", ["itrd", "hint", "similarity", "crd", "rkd", "pkt", "attention"])
def test_other_classes_without_logits(method: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DistillConfig(
        teacher="x",
        student="y",
        data="digits",
        method=method,
        out="",
        progress=False,
        **{**tiny, "epochs": 1},
    )
    teacher = TrainedNetwork(TwoStages(classes=7).eval(), "TwoStages", 7, "given", None, "digits")
    with prepare_distill(config, teacher=teacher, student=TwoStages()) as trainer:
        assert trainer.record["teacher"]["test"] is None
        assert trainer.fit().record["teacher"]["test"] is None


@pytest.mark.parametrize("method", ["kd", "dkd", "itrd + kd", "dist"])
def test_other_classes_with_logits(method: str, tiny: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"compares logits class by class, but .* has 7 classes and digits.*reads no"
    ):
        itrd.distill(TwoStages(classes=7), TwoStages(), "digits", method, **tiny)

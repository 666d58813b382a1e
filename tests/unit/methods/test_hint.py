from __future__ import annotations

import pytest
import torch
from torch import nn

from itrd.errors import UserError
from itrd.methods.connectors import ConvReg
from method_examples import MAPS, example_batch, make_setup, random_outputs, ready

STUDENT = random_outputs(1, maps=MAPS)
TEACHER = random_outputs(2, maps=((5, 8, 8), (9, 8, 8), (7, 2, 2)))


def test_value_is_the_mean_square_after_the_regressor() -> None:
    method = ready("hint", STUDENT, TEACHER)
    loss = method(STUDENT, TEACHER, example_batch())["hint"]

    conv, bn = method.regressor.conv, method.regressor.bn
    with torch.no_grad():
        x = conv(STUDENT.maps[1])
        mean = x.transpose(0, 1).flatten(1).mean(1)
        var = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        total, count = 0.0, 0
        for b in range(4):
            for c in range(9):
                y = (x[b, c] - mean[c]) / (var[c] + bn.eps).sqrt() * bn.weight[c] + bn.bias[c]
                total += float(((y.clamp(min=0) - TEACHER.maps[1][b, c]) ** 2).sum())
                count += y.numel()
    assert loss.item() == pytest.approx(total / count, rel=1e-12)


def test_layer_zero_is_the_stem() -> None:
    method = ready("hint", STUDENT, TEACHER, hint_layer=0)
    assert method(STUDENT, TEACHER, example_batch())["hint"].isfinite()
    assert method.regressor.conv.kernel_size == (1, 1)


@pytest.mark.parametrize(
    ("sizes", "kind", "kernel"),
    [
        (((8, 8), (4, 4)), nn.Conv2d, (3, 3)),
        (((4, 4), (8, 8)), nn.ConvTranspose2d, (4, 4)),
        (((8, 8), (8, 8)), nn.Conv2d, (1, 1)),
        (((8, 6), (5, 5)), nn.Conv2d, (4, 2)),
    ],
)
def test_connector_reaches_the_teachers_shape(sizes, kind, kernel) -> None:
    student, teacher = ((2, c, *size) for c, size in zip((3, 7), sizes, strict=True))
    connector = ConvReg(student, teacher)
    assert isinstance(connector.conv, kind)
    assert connector.conv.kernel_size == kernel
    out = connector(torch.randn(student))
    assert out.shape == teacher
    assert out.min() >= 0
    assert ConvReg(student, teacher, relu=False)(torch.randn(student)).min() < 0


def test_refusals() -> None:
    with pytest.raises(UserError, match="hint_layer"):
        ready("hint", STUDENT, TEACHER, hint_layer=-1)
    with pytest.raises(UserError, match="choose hint_layer 1 to 3"):
        ready("hint", STUDENT, TEACHER, hint_layer=4)
    method = type(ready("hint", STUDENT, TEACHER))()
    with pytest.raises(UserError, match="setup"):
        method(STUDENT, TEACHER, example_batch())
    method.setup(make_setup(STUDENT, TEACHER))

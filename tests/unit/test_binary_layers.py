"""The binary convolution against the recipe written out again: loops and full Jacobians in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from itrd.models.binary.layers import BinaryConv2d, binary_activation, pooled_shortcut, tau_at

Array = NDArray[np.float64]
EPS = 1e-5


def standardised_filter(w: Array) -> tuple[Array, Array]:
    """A centred and scaled filter (n,), and its Jacobian (n, n) with respect to the filter."""
    n = len(w)
    centred = w - w.sum() / n
    deviation = math.sqrt((centred**2).sum() / (n - 1) + EPS)
    scale = 2 * math.sqrt(2)
    centring = np.eye(n) - 1 / n
    # d(scale c / s) = scale (dc / s - c ds / s^2), and ds = c . dc / ((n - 1) s), since c sums to zero
    scaling = scale * (np.eye(n) / deviation - np.outer(centred, centred) / ((n - 1) * deviation**3))
    return centred * scale / deviation, scaling @ centring


def normalised_sample(x: Array) -> tuple[Array, Array]:
    """A sample (n,) over its deviation, not centred, and its Jacobian (n, n)."""
    n = len(x)
    centred = x - x.sum() / n
    deviation = math.sqrt((centred**2).sum() / (n - 1) + EPS)
    return x / deviation, np.eye(n) / deviation - np.outer(x, centred) / ((n - 1) * deviation**3)


def windows(height: int, width: int, stride: int) -> list[tuple[int, int, int, int, int, int]]:
    """Output row and column, tap row and column, input row and column; none outside of the image."""
    sides = [range(-(-side // stride)) for side in (height, width)]
    found = itertools.product(*sides, range(3), range(3))
    places = [(y, x, u, v, y * stride + u - 1, x * stride + v - 1) for y, x, u, v in found]
    return [p for p in places if 0 <= p[4] < height and 0 <= p[5] < width]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_backward_against_the_formulas(stride: int, training: bool) -> None:
    rng = np.random.default_rng(stride)
    batch, c_in, c_out, height, width = 2, 3, 4, 5, 4
    x = rng.normal(0.3, 1.2, (batch, c_in, height, width))
    w = rng.laplace(0.1, 1.0, (c_out, c_in, 3, 3))
    alpha = rng.uniform(0, 1, c_out)
    x[0, 0, 2, 2] = 0.0  # whose sign is zero
    tau = 0.9

    # Forward.
    scaled, weight_jacobians = zip(*(standardised_filter(f.ravel()) for f in w), strict=True)
    level = np.abs(np.stack(scaled)).mean()
    bound = -level * math.log(2 - 2 * tau)
    inside = np.abs(np.stack(scaled)).reshape(w.shape) <= bound
    assert 0 < inside.sum() < inside.size
    signs_w = np.sign(np.stack(scaled)).reshape(w.shape)
    if training:
        normalised, input_jacobians = zip(*(normalised_sample(s.ravel()) for s in x), strict=True)
    else:
        normalised, input_jacobians = tuple(s.ravel() for s in x), (np.eye(x[0].size),) * batch
    a = np.stack(normalised).reshape(x.shape)
    signs_x = np.sign(a)
    places = windows(height, width, stride)
    sums = np.zeros((batch, c_out, -(-height // stride), -(-width // stride)))
    for y, z, u, v, i, j in places:
        sums[:, :, y, z] += signs_x[:, :, i, j] @ signs_w[:, :, u, v].T
    expected = sums * alpha[:, None, None]

    # Backward, for a loss with the gradient g at the output.
    g = rng.normal(size=sums.shape)
    grad_alpha = (g * sums).sum((0, 2, 3))
    grad_signs_w, grad_signs_x = np.zeros_like(w), np.zeros_like(x)
    scaled_g = g * alpha[:, None, None]
    for y, z, u, v, i, j in places:
        grad_signs_w[:, :, u, v] += scaled_g[:, :, y, z].T @ signs_x[:, :, i, j]
        grad_signs_x[:, :, i, j] += scaled_g[:, :, y, z] @ signs_w[:, :, u, v]
    through_clamp = (grad_signs_w * inside).reshape(c_out, -1)
    grad_w = np.stack([j.T @ f for j, f in zip(weight_jacobians, through_clamp, strict=True)])
    through_sign = (grad_signs_x * np.maximum(0, 2 - 2 * np.abs(a))).reshape(batch, -1)
    grad_x = np.stack([j.T @ s for j, s in zip(input_jacobians, through_sign, strict=True)])

    conv = BinaryConv2d(c_in, c_out, stride).double().train(training)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(w))
        conv.alpha.copy_(torch.from_numpy(alpha).view(-1, 1, 1))
        conv.tau.fill_(tau)
    given = torch.from_numpy(x).requires_grad_()
    got = conv(given)
    got.backward(torch.from_numpy(g))
    for ours, theirs in (
        (got, expected),
        (conv.alpha.grad, grad_alpha.reshape(-1, 1, 1)),
        (conv.weight.grad, grad_w.reshape(w.shape)),
        (given.grad, grad_x.reshape(x.shape)),
    ):
        assert ours is not None
        np.testing.assert_allclose(ours.numpy(force=True), theirs, rtol=1e-11, atol=1e-12)


def test_float32_agrees_with_float64() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(3, 8, 6, 6), torch.randn(3, 8, 6, 6)
    grads = []
    for dtype in (torch.float32, torch.float64):
        given = x.to(dtype, copy=True).requires_grad_()
        binary_activation(given, training=True).backward(g.to(dtype))
        assert given.grad is not None
        grads.append(given.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_signs_do_not_depend_on_the_mode() -> None:
    x = torch.tensor([0.0, -0.0, 1e-20, -3.0, 7.0, 0.5]).view(1, 1, 2, 3)
    for training in (True, False):
        assert binary_activation(x, training).flatten().tolist() == [0, 0, 1, -1, 1, 1]


def test_quantile_schedule() -> None:
    assert tau_at(0, 600) == pytest.approx(0.85, abs=1e-15)
    assert tau_at(600, 600) == pytest.approx(0.99, abs=1e-15)
    # 0.14 / (e - 1) = 0.0814767, 0.85 less that = 0.7685233; times e^0.5 = 1.6487213 gives 0.1343324
    assert tau_at(300, 600) == pytest.approx(0.9028557, abs=1e-7)
    assert [tau_at(e, 10) for e in range(10)] == sorted(tau_at(e, 10) for e in range(10))


def test_the_quantile_is_filled_in_place_and_no_part_of_the_state() -> None:
    conv = BinaryConv2d(2, 2)
    before = conv.tau
    conv.start_epoch(1, 600)
    assert float(conv.tau) == pytest.approx(0.85)
    conv.start_epoch(301, 600)
    assert conv.tau is before
    assert float(conv.tau) == pytest.approx(0.9028557)
    assert set(conv.state_dict()) == {"weight", "alpha"}


def test_a_higher_quantile_frees_more_weights_and_changes_no_output() -> None:
    torch.manual_seed(0)
    conv, x = BinaryConv2d(4, 4), torch.randn(2, 4, 5, 5)
    moved, outputs = [], []
    for tau in (0.6, 0.9, 0.999):
        conv.tau.fill_(tau)
        out = conv(x)
        scaled = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
        scaled = scaled / scaled.std((1, 2, 3), keepdim=True)
        bound = -scaled.abs().mean() * math.log(2 - 2 * tau)
        moved.append(int((scaled.abs() <= bound).sum()))
        outputs.append(out)
    assert moved[0] < moved[1] <= moved[2]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_initial_values() -> None:
    torch.manual_seed(0)
    conv = BinaryConv2d(64, 64)
    assert 0 <= conv.alpha.min().item() < 0.2
    assert 0.8 < conv.alpha.max().item() < 1
    n = conv.weight.numel()
    deviation = math.sqrt(2 / (9 * 64))  # fan-in
    assert abs(conv.weight.std().item() / deviation - 1) < 6 / math.sqrt(2 * n)
    assert abs(conv.weight.mean().item()) < 6 * deviation / math.sqrt(n)


def test_pooled_shortcut() -> None:
    x = torch.arange(2 * 2 * 4 * 4, dtype=torch.float32).view(2, 2, 4, 4)
    short = pooled_shortcut(x, 4)
    assert short.shape == (2, 4, 2, 2)
    assert not short[:, [0, 3]].any()
    assert float(short[0, 1, 0, 0]) == (0 + 1 + 4 + 5) / 4
    assert float(short[1, 2, 1, 1]) == (58 + 59 + 62 + 63) / 4

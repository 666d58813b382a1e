"""Folding changes rounding and nothing else, on every benchmark network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itrd.engine.fold import fold_batch_norms
from itrd.models import BENCHMARK_MODELS, create_model

HEAVY = {"ResNet50", "resnet110", "vgg19", "vgg16", "resnet56", "resnet44"}  # as their smaller siblings


@pytest.mark.parametrize("name", [n for n in BENCHMARK_MODELS if n not in HEAVY])
def test_folded_network_is_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name, 10)
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        net.train()(images)  # statistics and weights that are not 0 and 1
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    net.eval()
    folded = fold_batch_norms(net, images[:2])
    before, after = (sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (net, folded))
    # Pre-activation networks have a batch norm behind every sum, which stays.
    assert after == (7 if name.startswith("wrn_16") else 19 if name.startswith("wrn_40") else 0)
    assert before > after
    with torch.no_grad():
        for preact in (False, True):
            ours, expected = folded.observe(images, preact), net.observe(images, preact)
            for a, b in zip([*ours.maps, *ours[:2]], [*expected.maps, *expected[:2]], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    assert not any(p.requires_grad for p in folded.parameters())


def test_a_convolution_whose_output_is_used_twice_is_left_alone() -> None:
    net = create_model("wrn_16_1", 10).eval()
    with torch.no_grad():
        net.block1.layer[0].bn1.bias.fill_(0.3)
    folded = fold_batch_norms(net, torch.randn(2, 3, 32, 32))
    assert isinstance(folded.block1.layer[0].bn1, nn.BatchNorm2d)  # conv1 feeds it and the residual sum
    assert isinstance(folded.block1.layer[0].bn2, nn.Identity)

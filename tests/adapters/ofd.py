from __future__ import annotations

import torch
from torch import Tensor, nn

from adapters import BaseAdapter, Case
from itrd.methods import Method


class Teacher(nn.Module):
    """Offers the file's batch norms."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.norms: list[nn.BatchNorm2d] = []
        while (key := f"teacher_bn_weight.{len(self.norms)}") in case.inputs:
            weight, bias = case.inputs[key], case.inputs[key.replace("weight", "bias")]
            norm = nn.BatchNorm2d(len(weight))
            with torch.no_grad():
                norm.weight.copy_(weight)
                norm.bias.copy_(bias)
            self.norms.append(norm)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return self.norms


class Adapter(BaseAdapter):
    def loss_key(self, key: str) -> str:
        return f"connectors.{key}"

    def networks(self, case: Case) -> tuple[nn.Module, nn.Module]:
        return nn.Identity(), Teacher(case)

    def others(self, method: Method, case: Case) -> dict[str, tuple[Tensor, Tensor]]:
        names = [name for name in case.outputs if name.startswith("margin.")]
        assert names
        return {n: (method.get_buffer(n.replace(".", "_")), case.outputs[n]) for n in names}

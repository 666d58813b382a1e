"""OFD: regressed pre-activations match the teacher's, except where both are far enough below zero."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.models.base import Outputs


class OFD(Method):
    """A Comprehensive Overhaul of Feature Distillation (Heo et al., ICCV 2019, arXiv 1904.01866).

    For pairs i = 0..n-1 of maps before their ReLU, s = connector(F_s) (1x1 convolution without bias, batch
    norm; trained), t = F_t pooled to the student's size, and a margin m_c < 0 per teacher channel,

        tau = max(t, m),    l = (s - tau)^2 where s > tau or tau > 0, else 0,
        L = sum_i 2^-(n-1-i) (1/B) sum over all elements of l.

    The published weight is 0.001. The margin is the mean of the negative part of a Gaussian: with weight w
    (absolute value) and bias beta of the teacher's batch norm before the ReLU, Phi the normal distribution,

        m = beta - w exp(-(beta/w)^2 / 2) / (sqrt(2 pi) Phi(-beta/w))  if Phi(-beta/w) > 0.001, else -3 w.

    Where this differs from the public benchmark code that the numbers come from: there the teacher is left
    in train mode by oversight, here it is in eval mode. Of unequal numbers of maps the shallow ones are left
    out of the longer list; there the margins keep the shallow ones, here they belong to the maps used. A
    batch norm with weight 0 gives m = min(beta, 0), where the formula divides by zero.
    """

    name = "ofd"
    title = "OFD"
    paper = "Heo, Kim, Yun, Park, Kwak, Choi, ICCV 2019, arXiv 1904.01866"
    formula = "L = sum_i 2^-(n-1-i) (1/B) sum [s > tau or tau > 0] (s - tau)^2,  tau = max(t, m)"
    reads = frozenset({"maps"})
    relates_samples = False
    weight = 0.001
    student_preact = True
    teacher_preact = True

    def __init__(self) -> None:
        super().__init__()
        self.connectors = nn.ModuleList()

    def setup(self, setup: Setup) -> None:
        """Build the connectors and read the margins off the teacher's batch norms."""
        norms = _norms(setup.teacher_net)
        if [len(norm.weight) for norm in norms] != [f.shape[1] for f in setup.teacher.maps]:
            raise UserError(
                "ofd: the teacher's maps do not have one batch norm before their ReLU each; choose a teacher "
                "of another architecture"
            )
        n = min(len(setup.student.maps), len(setup.teacher.maps))
        pairs = zip(setup.student.maps[-n:], setup.teacher.maps[-n:], strict=True)
        self.connectors = nn.ModuleList(_connector(s.shape[1], t.shape[1]) for s, t in pairs)
        for i, norm in enumerate(norms[-n:]):
            self.register_buffer(f"margin_{i}", margin(norm.weight, norm.bias), persistent=False)

    def connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Replace the student's maps by its connected maps."""
        n = len(self.connectors)
        if not n:
            raise UserError("ofd: call setup() with example outputs before the first loss")
        maps = tuple(c(f) for c, f in zip(self.connectors, student.maps[-n:], strict=True))
        return student._replace(maps=maps), teacher._replace(maps=teacher.maps[-n:])

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"ofd": scalar}`` for connected maps (B, C_i, H_i, W_i) with the teacher's channels."""
        n = len(self.connectors)
        losses = [
            partial_square(s, t, self.get_buffer(f"margin_{i}")) / 2 ** (n - 1 - i)
            for i, (s, t) in enumerate(zip(student.maps, teacher.maps, strict=True))
        ]
        return {"ofd": torch.stack(losses).sum()}


def partial_square(s: Tensor, t: Tensor, m: Tensor) -> Tensor:
    """(1/B) sum of l for maps (B, C, H, W), t of any size, margins (C,); scalar."""
    if t.shape[2:] != s.shape[2:]:
        t = F.adaptive_avg_pool2d(t, (s.shape[2], s.shape[3]))
    tau = torch.maximum(t, m[:, None, None])
    difference = torch.where((s > tau) | (tau > 0), s - tau, torch.zeros_like(s))
    return (difference / s.shape[0] ** 0.5).square().sum()


def margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Margins (C,) from a batch norm's weight and bias (C,), computed in float64, returned in float32."""
    w, beta = weight.detach().double().abs().clamp(min=1e-30), bias.detach().double()
    below = torch.special.ndtr(-beta / w)
    mean = beta - w * (-(beta / w).square() / 2).exp() / (math.sqrt(2 * math.pi) * below.clamp(min=0.001))
    return torch.where(below > 0.001, mean, -3 * w).float()


def _norms(teacher: nn.Module) -> list[nn.BatchNorm2d]:
    try:
        return teacher.get_bn_before_relu()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        raise UserError(
            f"ofd: the teacher {type(teacher).__name__} does not tell its batch norms before the ReLU "
            "(get_bn_before_relu); choose a teacher of another architecture"
        ) from None


def _connector(c_s: int, c_t: int) -> nn.Sequential:
    conv = nn.Conv2d(c_s, c_t, 1, bias=False)
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2 / c_t))
    return nn.Sequential(conv, nn.BatchNorm2d(c_t))

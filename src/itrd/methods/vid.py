"""VID: the student's maps carry information about the teacher's, by a Gaussian lower bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.methods.functional import pool_to_match
from itrd.models.base import Outputs


class VID(Method):
    """Variational Information Distillation (Ahn et al., CVPR 2019, arXiv 1904.05835).

    For each pair of maps a trainable regressor mu (three 1x1 convolutions without bias, ReLU between) and a
    trainable vector a of C_t numbers give a Gaussian q(F_t | F_s) with one variance per teacher channel,

        var_c = log(1 + exp(a_c)) + eps,
        L = sum over pairs of mean over all elements of 1/2 [(mu(F_s) - F_t)^2 / var_c + log var_c].

    Where the sizes of a pair differ, the larger map is average-pooled first. If one network has more maps
    than the other, its deepest ones are left over, as in the published code.

    Where the published benchmark code, which this follows, differs from the paper: mean instead of sum over
    elements, and the constant log(2 pi) / 2 is dropped. A wide ResNet's maps are raw sums, before the next block's
    batch norm and activation. Another public code base keeps a in a plain list, so
    it is never trained; here it is a parameter, with the run's weight decay.

    Numerical safety: log(1 + exp(a)) overflows in float32 for a > 88; here it is the same function computed
    as log(exp(a) + exp(0)) without overflow.

    Args:
        init_pred_var: variance at the start, > eps.
        eps: smallest variance, > 0.
    """

    name = "vid"
    title = "VID"
    paper = "Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019, arXiv 1904.05835"
    formula = "L = sum_i mean 1/2 [(mu(F_s,i) - F_t,i)^2 / var_c + log var_c],  var = log(1 + exp(a)) + eps"
    reads = frozenset({"maps"})
    relates_samples = False

    def __init__(self, *, init_pred_var: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        if not 0 < eps < init_pred_var:
            raise UserError(
                f"vid: choose 0 < eps < init_pred_var, got eps {eps} and init_pred_var {init_pred_var}"
            )
        self.init_pred_var = init_pred_var
        self.eps = eps
        self.gaussians = nn.ModuleList()

    def setup(self, setup: Setup) -> None:
        """Build a regressor and a vector of log-scales for every pair of maps."""
        at_first = self.init_pred_var - self.eps
        a = at_first + math.log(-math.expm1(-at_first))  # log(exp(x) - 1), which overflows for x > 709
        pairs = zip(setup.student.maps, setup.teacher.maps, strict=False)
        self.gaussians = nn.ModuleList(_Gaussian(f_s.shape[1], f_t.shape[1], a) for f_s, f_t in pairs)

    def connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Replace the maps by pairs of equal shape, the student's after its regressor."""
        if not len(self.gaussians):
            raise UserError("vid: call setup() with example outputs before the first loss")
        pairs = [pool_to_match(*pair) for pair in zip(student.maps, teacher.maps, strict=False)]
        means = tuple(g(f_s) for g, (f_s, _) in zip(self.gaussians, pairs, strict=True))
        return student._replace(maps=means), teacher._replace(maps=tuple(f_t for _, f_t in pairs))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"vid": scalar}`` for connected maps of equal shapes (B, C_i, H_i, W_i)."""
        losses = [
            gaussian_loss(mu, f_t, g.variance() + self.eps)
            for g, mu, f_t in zip(self._gaussians(), student.maps, teacher.maps, strict=True)
        ]
        return {"vid": torch.stack(losses).sum()}

    def _gaussians(self) -> list[_Gaussian]:
        return [g for g in self.gaussians if isinstance(g, _Gaussian)]


def gaussian_loss(mu: Tensor, f_t: Tensor, var: Tensor) -> Tensor:
    """L of one pair of maps (B, C, H, W) with variances (C,); scalar."""
    squares = ((mu - f_t) / mu.numel() ** 0.5).square().sum(dim=(0, 2, 3))
    return 0.5 * ((squares / var).sum() + var.log().mean())


class _Gaussian(nn.Module):
    def __init__(self, c_s: int, c_t: int, log_scale: float) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(c_s, c_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
        )
        self.log_scale = nn.Parameter(torch.full((c_t,), log_scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.regressor(x)

    def variance(self) -> Tensor:
        return torch.logaddexp(self.log_scale, torch.zeros_like(self.log_scale))

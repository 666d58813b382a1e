"""ReviewKD: each level of the student, fused with the deeper ones, matches the teacher's level."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.methods.functional import mean_square
from itrd.methods.stages import check_epochs, check_same_maps
from itrd.models.base import Outputs

POOLS = (4, 2, 1)


class ReviewKD(Method):
    """Distilling knowledge via knowledge review (Chen, Liu, Zhao, Jia, CVPR 2021, arXiv 2104.09044).

    Levels i = 0..n-1 of each network: its maps, and last its embedding as a map (B, D, 1, 1); of the teacher
    the maps before their activation, of the student after it (a wide ResNet's are sums without activation).
    The student's levels are fused from deep to shallow by trainable modules (:class:`Fusion`); with fused s_i
    and teacher's t_i of height h, and pool_l the average pooling to l x l,

        hcl(s, t) = [ mse(s, t) + sum_l w_l mse(pool_l s, pool_l t) ] / (1 + sum_l w_l),  l in (4, 2, 1), l < h,
        L = min(1, e / 20) sum_i hcl(s_i, t_i),

    with w = 1/2, 1/4, 1/8 given in order to the l that are used, and e the epoch counted from 0, so that the
    first epoch has no distillation. The logged value is without the warm-up factor.

    Published weights: 5 for wrn_40_2 -> wrn_16_2, wrn_40_1, ShuffleV1 and resnet32x4 -> resnet8x4, ShuffleV1;
    8 for resnet32x4 -> ShuffleV2; 0.6 for resnet56 -> resnet20; 1 for resnet110 -> resnet32. The default is 5.

    Where this differs from the published code:
        * there the teacher is never put in eval mode, so that its batch norms use the batch's statistics and
          go on changing; here the teacher is in eval mode;
        * the code has tables of the shapes of its networks, with widths for students that it does not ship;
          here shapes come from the networks themselves, so any pair with equally many maps can be trained;
        * its recipe (Nesterov, learning rate 0.1, batches of 128, other normalisation of images) belongs to
          a run, not to the method.

    Numerically a mean square divides before it sums, so that large entries do not overflow; and a batch of
    one, which the published code refuses, is taken (:class:`BatchNorm`).

    Args:
        warmup_epochs: length of the warm-up; 0 for none. A loop that never calls :meth:`start_epoch` has none.
    """

    name = "reviewkd"
    title = "ReviewKD"
    paper = "Chen, Liu, Zhao, Jia, CVPR 2021, arXiv 2104.09044"
    formula = "L = min(1, epoch / 20) sum_i hcl(s_i, t_i),  s_i fused from levels i and deeper"
    reads = frozenset({"maps", "embedding"})
    relates_samples = False
    weight = 5.0
    teacher_preact = True

    warmup: Tensor

    def __init__(self, *, warmup_epochs: int = 20) -> None:
        super().__init__()
        self.warmup_epochs = check_epochs(self.name, "warmup_epochs", warmup_epochs)
        self.fusions = nn.ModuleList()  # deepest level first
        self.register_buffer("warmup", torch.ones(()), persistent=False)

    def setup(self, setup: Setup) -> None:
        """Build one fusion module per level."""
        check_same_maps(self.name, setup.student.maps, setup.teacher.maps)
        levels_s, levels_t = levels(setup.student), levels(setup.teacher)
        width = min(512, levels_s[-1].shape[1])
        deepest_first = enumerate(zip(levels_s[::-1], levels_t[::-1], strict=True))
        self.fusions = nn.ModuleList(
            Fusion(f_s.shape, f_t.shape, width, review=depth > 0) for depth, (f_s, f_t) in deepest_first
        )

    def start_epoch(self, epoch: int) -> None:
        """Set the warm-up factor, (epoch - 1) / warmup_epochs up to 1."""
        self.warmup.fill_(min(1.0, (epoch - 1) / self.warmup_epochs) if self.warmup_epochs else 1.0)

    def connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Replace the maps by the levels, the student's fused."""
        if not self.fusions:
            raise UserError("reviewkd: call setup() with example outputs before the first loss")
        fused: list[Tensor] = []
        residual = None
        for fusion, f_s in zip(self.fusions, levels(student)[::-1], strict=True):
            output, residual = fusion(f_s, residual)
            fused.insert(0, output)
        return student._replace(maps=tuple(fused)), teacher._replace(maps=levels(teacher))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"reviewkd": scalar}`` for connected levels of equal shapes, without the warm-up factor."""
        losses = [hcl(s, t) for s, t in zip(student.maps, teacher.maps, strict=True)]
        return {"reviewkd": torch.stack(losses).sum()}

    def loss(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Multiply by the warm-up factor."""
        return self.warmup * super().loss(terms)


class Fusion(nn.Module):
    """One level's fusion of the student's map with the review of all deeper levels.

    conv1 (1x1, batch norm) brings the map to ``width`` channels. If there is a deeper level, its review r is
    resized (nearest neighbour) to the map's size, and

        g = sigmoid(att_conv(concat(x, r))),    x <- x g_0 + r g_1.

    x is resized to the teacher's size where it differs; it is the review for the next level, and conv2 (3x3,
    batch norm) of it is the output. No ReLU. Weights of conv1 and conv2 begin uniform in +-sqrt(3 / fan_in).

    Args:
        student_shape: (B, C_s, H_s, W_s) of this level.
        teacher_shape: (B, C_t, H_t, W_t) of this level.
        width: channels of the reviews.
        review: whether there is a deeper level.
    """

    def __init__(
        self, student_shape: torch.Size, teacher_shape: torch.Size, width: int, *, review: bool
    ) -> None:
        super().__init__()
        self.size = tuple(teacher_shape[2:])
        self.conv1 = _block(student_shape[1], width, kernel=1)
        self.conv2 = _block(width, teacher_shape[1], kernel=3)
        self.att_conv = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if review else None

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return output (B, C_t, H_t, W_t) and review (B, width, H_t, W_t) for a map and the deeper review."""
        x = self.conv1(x)
        if self.att_conv is not None:
            assert residual is not None
            residual = _resize(residual, x.shape[2:])
            gates = self.att_conv(torch.cat([x, residual], dim=1))
            x = x * gates[:, :1] + residual * gates[:, 1:]
        x = _resize(x, self.size)
        return self.conv2(x), x


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also takes one value per channel, as the deepest level of a batch of one has.

    Such a value is its own mean, so the result is the bias; the running statistics stay. Torch refuses it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if self.training and x.numel() == x.shape[1]:
            return (x * 0.0) * self.weight[:, None, None] + self.bias[:, None, None]
        return super().forward(x)


def _block(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, BatchNorm(c_out))


def levels(outputs: Outputs) -> tuple[Tensor, ...]:
    """Maps and, last, the embedding as a map of 1x1."""
    assert outputs.embedding is not None
    return (*outputs.maps, outputs.embedding[:, :, None, None])


def hcl(s: Tensor, t: Tensor) -> Tensor:
    """Hierarchical context loss of one level's maps (B, C, H, W) of equal shape; scalar."""
    total, weights, weight = mean_square(s - t), 1.0, 1.0
    for size in POOLS:
        if size < s.shape[2]:
            weight /= 2
            weights += weight
            pooled = F.adaptive_avg_pool2d(s, size) - F.adaptive_avg_pool2d(t, size)
            total = total + weight * mean_square(pooled)
    return total / weights


def _resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest")

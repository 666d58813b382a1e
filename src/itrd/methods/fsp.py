"""FSP: before its own training, the student learns how the teacher's maps flow into each other."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.base import Batch, FirstStage, Method, Setup
from itrd.methods.functional import mean_square, pool_to_match
from itrd.methods.stages import check_epochs, check_same_maps, feature_modules
from itrd.models.base import Outputs


class FSP(Method):
    """Flow of solution procedure (Yim, Joo, Bae, Kim, CVPR 2017).

    Reads stem and maps F_0, F_1, ..., F_n of both networks. Of consecutive maps the larger one is adaptively
    average-pooled to the smaller height; then, as a mean over the positions (h, w),

        G_i[b, q, p] = mean_hw F_i+1[b, q, h, w] F_i[b, p, h, w]            (B, C_i+1, C_i),
        L = sum_i mean over elements of (G_s,i - G_t,i)^2.

    First stage: ``init_epochs`` epochs over the student's modules below the classifier with loss L, everything
    else in eval mode; no weight enters. Second stage: the student's plain training from the weights so
    found; the method has no term there, and its weight is without effect.

    Where the published benchmark code, which this follows, differs from the paper: it pools by average (paper:
    by maximum) and uses stem and all maps (paper: selected layers). Channels must agree map by map, which
    excludes wrn_40_2 -> wrn_40_1 and all pairs of different architectures.

    Numerically entries beyond +-1e9 are clamped and get no gradient: L is a fourth power of them and would
    leave single precision.

    Args:
        init_epochs: length of the first stage; 0 leaves it out.
    """

    name = "fsp"
    title = "FSP"
    paper = "Yim, Joo, Bae, Kim, CVPR 2017"
    formula = "first stage: L = sum_i mean (G_s,i - G_t,i)^2, G_i = mean_hw F_i+1 F_i^T"
    reads = frozenset({"stem", "maps"})
    main_stage = False
    relates_samples = False
    weight = 50.0

    def __init__(self, *, init_epochs: int = 30) -> None:
        super().__init__()
        self.init_epochs = check_epochs(self.name, "init_epochs", init_epochs)
        self._student: list[nn.Module] = []  # a list, because the student is not a part of the method

    def setup(self, setup: Setup) -> None:
        """Check that the channels of the two networks agree."""
        flow_s, flow_t = flow(setup.student), flow(setup.teacher)
        check_same_maps(self.name, flow_s, flow_t)
        channels_s, channels_t = [f.shape[1] for f in flow_s], [f.shape[1] for f in flow_t]
        if channels_s != channels_t:
            raise UserError(
                "method 'fsp' compares products of channels entry by entry, so stem and maps must have equally "
                f"many channels; the student has {channels_s} and the teacher {channels_t}. Methods that "
                "compare maps of other widths: attention, similarity, nst, reviewkd"
            )
        self._student = [setup.student_net]

    def first_stage(self) -> FirstStage | None:
        """Train the student below its classifier, at the run's initial learning rate."""
        if self.init_epochs == 0:
            return None
        return FirstStage((feature_modules(self.name, self._student),), self.init_epochs)

    def first_stage_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"fsp": scalar}`` for stems and maps with equal channels."""
        pairs = zip(pairwise(flow(student)), pairwise(flow(teacher)), strict=True)
        losses = [mean_square(flow_matrix(*pair_s) - flow_matrix(*pair_t)) for pair_s, pair_t in pairs]
        return {"fsp": torch.stack(losses).sum()}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return no term: the second stage is plain training."""
        return {}


def flow(outputs: Outputs) -> tuple[Tensor, ...]:
    """Stem and maps, in order."""
    assert outputs.stem is not None
    return (outputs.stem, *outputs.maps)


def flow_matrix(lower: Tensor, upper: Tensor, limit: float = 1e9) -> Tensor:
    """G (B, C', C) of two consecutive maps (B, C, H, W), (B, C', H', W')."""
    lower, upper = pool_to_match(lower.clamp(-limit, limit), upper.clamp(-limit, limit))
    p, q = lower.flatten(2), upper.flatten(2)
    return (q / q.shape[2]) @ p.transpose(1, 2)

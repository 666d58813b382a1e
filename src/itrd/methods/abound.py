"""AB: before its own training, the student learns which of the teacher's neurons are active."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.base import Batch, FirstStage, Method, Setup
from itrd.methods.connectors import ConvReg
from itrd.methods.stages import check_epochs, check_same_maps, feature_modules
from itrd.models.base import Outputs


class AB(Method):
    """Activation boundaries (Heo, Lee, Yun, Choi, AAAI 2019).

    arXiv 1811.03233. Reads the maps F_s,i, F_t,i before their activation, i = 0..n-1. Connector r_i: the
    identity where channels and size agree, else a convolution and a batch norm
    (:class:`itrd.methods.connectors.ConvReg` without ReLU).

    First stage, ``init_epochs`` epochs over the connectors and the student's modules below the classifier,
    everything else in eval mode. With s = r_i(F_s,i), t = F_t,i, margin m = 1,

        l = (s + m)^2 [s > -m and t <= 0] + (s - m)^2 [s <= m and t > 0]        (elementwise),
        L = sum_i 2^(i - n + 1) (3 / (1000 B)) (sum over all elements of l).

    The weights of cross-entropy and method do not enter. Second stage: the student's plain training from
    the weights so found; the method has no term there, so its weight is without effect, and the connectors
    are neither used nor trained.

    Where the published code, which this follows, differs from the paper:
        * 3 / 1000 scales the sum, and the deepest map has weight 1, each shallower one half of the next;
        * the wide ResNets' last batch norm, whose output is their last map, and the last 1x1 convolution of
          MobileNetV2 and ShuffleV2 are not trained in the first stage;
        * ``preact=True`` stays switched on in the second stage, where no map is read. A wide ResNet then
          updates three batch norms twice per step, which changes its evaluated accuracy. The reference track does
          the same, the clean track does not (``track`` of a run);
        * networks with unequal numbers of maps are refused.

    Numerically the sum is taken over entries divided by sqrt(1000 B / 3) before squaring, so that large
    entries do not overflow; the value is the same up to rounding.

    Args:
        init_epochs: length of the first stage; 0 leaves it out.
    """

    name = "abound"
    title = "AB"
    paper = "Heo, Lee, Yun, Choi, AAAI 2019, arXiv 1811.03233"
    formula = "first stage: L = sum_i 2^(i-n+1) 3/(1000 B) sum (s + m)^2 [s > -m, t <= 0] + (s - m)^2 [s <= m, t > 0]"
    reads = frozenset({"maps"})
    main_stage = False
    relates_samples = False
    student_preact = True
    teacher_preact = True

    def __init__(self, *, init_epochs: int = 30) -> None:
        super().__init__()
        self.init_epochs = check_epochs(self.name, "init_epochs", init_epochs)
        self.connectors = nn.ModuleList()
        self._student: list[nn.Module] = []  # a list, because the student is not a part of the method

    def setup(self, setup: Setup) -> None:
        """Build the connectors."""
        check_same_maps(self.name, setup.student.maps, setup.teacher.maps)
        self.connectors = nn.ModuleList(
            nn.Identity() if f_s.shape[1:] == f_t.shape[1:] else ConvReg(f_s.shape, f_t.shape, relu=False)
            for f_s, f_t in zip(setup.student.maps, setup.teacher.maps, strict=True)
        )
        self._student = [setup.student_net]
        self.train(self.training)

    def first_stage_only(self) -> tuple[nn.Module, ...]:
        """Return the connectors."""
        return (self.connectors,)

    def first_stage(self) -> FirstStage | None:
        """Train connectors and the student below its classifier, at the run's initial learning rate."""
        if self.init_epochs == 0:
            return None
        return FirstStage((self.connectors, feature_modules(self.name, self._student)), self.init_epochs)

    def first_stage_connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Bring the student's maps to the teacher's shapes."""
        if not self.connectors:
            raise UserError("abound: call setup() with example outputs before the first loss")
        connected = zip(self.connectors, student.maps, strict=True)
        return student._replace(maps=tuple(connector(f_s) for connector, f_s in connected)), teacher

    def first_stage_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"abound": scalar}`` for connected maps of equal shapes."""
        n = len(student.maps)
        pairs = zip(student.maps, teacher.maps, strict=True)
        losses = [2.0 ** (i - n + 1) * boundary_loss(s, t) for i, (s, t) in enumerate(pairs)]
        return {"abound": torch.stack(losses).sum()}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return no term: the second stage is plain training."""
        return {}


def boundary_loss(s: Tensor, t: Tensor, margin: float = 1.0) -> Tensor:
    """3 / (1000 B) sum of l over two maps (B, C, H, W) of equal shape; scalar."""
    scale = (3 / 1000 / s.shape[0]) ** 0.5
    too_active = (s + margin) * ((s > -margin) & (t <= 0))
    too_silent = (s - margin) * ((s <= margin) & (t > 0))
    return (scale * too_active).square().sum() + (scale * too_silent).square().sum()

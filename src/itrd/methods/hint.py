"""FitNet: a regressor on a student's map predicts the teacher's map."""

from __future__ import annotations

from torch import Tensor

from itrd.errors import UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.methods.connectors import ConvReg
from itrd.methods.functional import mean_square
from itrd.models.base import Outputs


class Hint(Method):
    """FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015, arXiv 1412.6550).

    With F the list (stem, map 1, map 2, ...) of a network and h = ``hint_layer``,

        L = mean over all elements of (r(F_s[h]) - F_t[h])^2,

    r the trainable regressor :class:`~itrd.methods.connectors.ConvReg`: convolution, batch norm, ReLU.

    Where the published benchmark code, which this follows, differs from the paper:
        * one stage: the hint is trained together with the cross-entropy for the whole run, where the paper
          trains the lower half of the student on the hint first;
        * the regressor has a batch norm and ends with a ReLU, so it cannot match the negative entries that
          a wide ResNet's maps (sums before the next block's activation) have.

    Args:
        hint_layer: 0 for the stem, i for the i-th map, counted from 1; of both networks.
    """

    name = "hint"
    title = "FitNet"
    paper = "Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550"
    formula = "L = mean (r(F_s[h]) - F_t[h])^2"
    reads = frozenset({"maps"})
    relates_samples = False
    weight = 100.0

    regressor: ConvReg | None

    def __init__(self, *, hint_layer: int = 2) -> None:
        super().__init__()
        if hint_layer < 0:
            raise UserError(f"hint: hint_layer must be 0 (the stem) or the number of a map, got {hint_layer}")
        self.hint_layer = hint_layer
        self.reads = frozenset({"maps"} if hint_layer else {"stem"})
        self.regressor = None

    def setup(self, setup: Setup) -> None:
        """Build the regressor from the student's to the teacher's map."""
        self.regressor = ConvReg(self._hint(setup.student).shape, self._hint(setup.teacher).shape)

    def connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Replace the maps by the hint alone, the student's after the regressor."""
        if self.regressor is None:
            raise UserError("hint: call setup() with example outputs before the first loss")
        regressed = self.regressor(self._hint(student))
        return student._replace(maps=(regressed,)), teacher._replace(maps=(self._hint(teacher),))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"hint": scalar}`` for connected maps of equal shape (B, C_t, H_t, W_t)."""
        return {"hint": mean_square(student.maps[0] - teacher.maps[0])}

    def _hint(self, outputs: Outputs) -> Tensor:
        layers = (outputs.stem, *outputs.maps)
        layer = layers[self.hint_layer] if self.hint_layer < len(layers) else None
        if layer is None:
            raise UserError(
                f"hint: there is no layer {self.hint_layer}; choose hint_layer 1 to {len(layers) - 1}"
            )
        return layer

"""No distillation: the student alone, the control of every comparison."""

from __future__ import annotations

from torch import Tensor

from itrd.methods.base import Batch, Method
from itrd.models.base import Outputs


class NoDistillation(Method):
    """Cross-entropy only; the teacher is never consulted."""

    name = "none"
    title = "Student alone"
    paper = "the control: no distillation"
    formula = "L = CE(z_s, y)"
    relates_samples = False

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return no term."""
        return {}

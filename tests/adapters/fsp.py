from __future__ import annotations

from torch import Tensor

from adapters import BaseAdapter, Case, Computed
from itrd.models.base import Outputs


class Adapter(BaseAdapter):
    """The file holds the loss of the first stage; its first map is the stem."""

    def side(self, inputs: dict[str, Tensor], side: str) -> Outputs:
        logits, embedding, (stem, *maps), _ = super().side(inputs, side)
        return Outputs(logits, embedding, tuple(maps), stem)

    def compute(self, case: Case) -> Computed:
        method = self.build(case)
        student, teacher = self.side(case.inputs, "s"), self.side(case.inputs, "t")
        loss = method.loss(method(student, teacher, self.batch(case), first_stage=True))
        return Computed(loss, {f"in/{key}": tensor for key, tensor in case.inputs.items()}, {})

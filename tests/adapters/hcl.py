from __future__ import annotations

import torch

from adapters import BaseAdapter, Case, Computed
from itrd.methods.reviewkd import hcl


class Adapter(BaseAdapter):
    """ReviewKD's loss without its fusion modules."""

    def compute(self, case: Case) -> Computed:
        student, teacher = self.side(case.inputs, "s"), self.side(case.inputs, "t")
        losses = [hcl(s, t) for s, t in zip(student.maps, teacher.maps, strict=True)]
        return Computed(torch.stack(losses).sum(), {f"in/{k}": t for k, t in case.inputs.items()}, {})

from __future__ import annotations

from adapters import BaseAdapter, Case, Computed


class Adapter(BaseAdapter):
    """The file holds the loss of the first stage."""

    def trajectory_key(self, key: str) -> tuple[str, str]:
        return "connector", key

    def compute(self, case: Case) -> Computed:
        method = self.build(case)
        method.connectors.train().requires_grad_(True)
        student, teacher = self.side(case.inputs, "s"), self.side(case.inputs, "t")
        loss = method.loss(method(student, teacher, self.batch(case), first_stage=True))
        leaves = {f"in/{key}": tensor for key, tensor in case.inputs.items()}
        leaves |= {f"param/{key}": p for key, p in method.named_parameters()}
        return Computed(loss, leaves, {})

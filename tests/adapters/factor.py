from __future__ import annotations

from typing import Any

from torch import Tensor

from adapters import BaseAdapter, Case, Computed
from itrd.methods import Method
from itrd.models.base import Outputs


class Adapter(BaseAdapter):
    """Cases ``*_init`` are the first stage: only the teacher's map, and the paraphraser without its prefix."""

    def settings(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"k": args["k"]}

    def side(self, inputs: dict[str, Tensor], side: str) -> Outputs:
        return super().side({f"f_{side}": inputs["f_t"], **inputs}, side)

    def trajectory_key(self, key: str) -> tuple[str, str]:
        module, _, rest = key.partition(".")
        return module, rest

    def build(self, case: Case) -> Method:
        if case.name.endswith("_init"):
            case.params = {f"paraphraser.{key}": value for key, value in case.params.items()}
        return super().build(case)

    def compute(self, case: Case) -> Computed:
        first = case.name.endswith("_init")
        method = self.build(case)
        student, teacher = self.side(case.inputs, "s"), self.side(case.inputs, "t")
        prefix = "param/"
        if first:
            prefix = "param/paraphraser."
            method.paraphraser.requires_grad_(True)
        loss = method.loss(method(student, teacher, self.batch(case), first_stage=first))
        leaves = {f"in/{key}": tensor for key, tensor in case.inputs.items()}
        names = {key: f"param/{key}".replace(prefix, "param/") for key, _ in method.named_parameters()}
        leaves |= {names[key]: p for key, p in method.named_parameters()}
        connect = method.first_stage_connect if first else method.connect
        ours_s, ours_t = connect(student, teacher)
        others = {}
        if first:
            others["reconstruction"] = (ours_s.maps[0].detach(), case.outputs["reconstruction"])
        else:
            others["factor_s"] = (ours_s.maps[0].detach(), case.outputs["factor_s"])
            others["factor_t"] = (ours_t.maps[0].detach(), case.outputs["factor_t"])
        return Computed(loss, leaves, others)

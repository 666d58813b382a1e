from __future__ import annotations

from typing import Any

from torch import Tensor

from adapters import BaseAdapter, Case
from itrd.methods import Method, create_method
from itrd.methods.objective import Objective
from itrd.models.base import Outputs


class Adapter(BaseAdapter):
    """The deepest feature of a file is the embedding."""

    def settings(self, args: dict[str, Any]) -> dict[str, Any]:
        return {}

    def loss_key(self, key: str) -> str:
        return key.replace("fusions.", "abfs.")

    def trajectory_key(self, key: str) -> tuple[str, str]:
        return "abfs", key.removeprefix("fusions.")

    def side(self, inputs: dict[str, Tensor], side: str) -> Outputs:
        logits, _, (*maps, deepest), _ = super().side(inputs, side)
        return Outputs(logits, deepest.flatten(1), tuple(maps))

    def others(self, method: Method, case: Case) -> dict[str, tuple[Tensor, Tensor]]:
        fused, _ = method.connect(self.side(case.inputs, "s"), self.side(case.inputs, "t"))
        return {
            f"fused.{i}": (ours.detach(), case.outputs[f"fused.{i}"]) for i, ours in enumerate(fused.maps)
        }

    def objective(self, run: dict[str, Any]) -> tuple[Objective, Method]:
        w = run["weights"]
        method = create_method("reviewkd", warmup_epochs=w["warmup_epochs"])
        return Objective([(w["reviewkd"], method)], w["ce"]), method

    def step_values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {key: float(value) for key, value in terms.items()}
        return {"total": values["loss"], "ce": values["ce"], "hcl": values["reviewkd"]}

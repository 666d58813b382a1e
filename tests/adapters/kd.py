from __future__ import annotations

from typing import Any

from torch import Tensor

from adapters import BaseAdapter
from itrd.methods import Method, create_method
from itrd.methods.objective import Objective


class Adapter(BaseAdapter):
    def objective(self, run: dict[str, Any]) -> tuple[Objective, Method]:
        method = create_method("kd", T=run["kd_T"])
        return Objective([(run["weights"]["a"], method)], run["weights"]["r"]), method

    def step_values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        return {"total": float(terms["loss"]), "ce": float(terms["ce"]), "kl": float(terms["kd"])}

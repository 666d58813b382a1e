from __future__ import annotations

from typing import Any

from torch import Tensor

from adapters import BaseAdapter, Case
from itrd.methods import Method, create_method
from itrd.methods.objective import Objective


class Adapter(BaseAdapter):
    def settings(self, args: dict[str, Any]) -> dict[str, Any]:
        lambdas = {key: args[key] for key in ("lambda_corr", "lambda_mutual") if key in args}
        return {"alpha": args["alpha_it"], **lambdas}

    def loss_key(self, key: str) -> str:
        return key.replace("embed.", "embed.linear.")

    def trajectory_key(self, key: str) -> tuple[str, str]:
        return "criterion", self.loss_key(key)

    def value(self, method: Method, terms: dict[str, Tensor], case: Case) -> Tensor:
        part = case.info["args"]["part"]
        return method.loss(terms) if part == "total" else terms[part]

    def objective(self, run: dict[str, Any]) -> tuple[Objective, Method]:
        w = run["weights"]
        method = create_method(
            "itrd", alpha=w["alpha_it"], lambda_corr=w["lambda_corr"], lambda_mutual=w["lambda_mutual"]
        )
        return Objective([(w["b"], method)], w["r"]), method

    def step_values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {k: float(v) for k, v in terms.items()}
        return {
            "total": values["loss"],
            "ce": values["ce"],
            "corr": values["itrd.corr"],
            "mutual": values["itrd.mutual"],
        }

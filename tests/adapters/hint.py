from __future__ import annotations

from typing import Any

from torch import Tensor

from adapters import BaseAdapter, Case
from itrd.methods import Method


class Adapter(BaseAdapter):
    def settings(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"hint_layer": 1}  # the file has one map

    def loss_key(self, key: str) -> str:
        return key.removeprefix("regressor.")

    def trajectory_key(self, key: str) -> tuple[str, str]:
        return "regress_s", self.loss_key(key)

    def others(self, method: Method, case: Case) -> dict[str, tuple[Tensor, Tensor]]:
        regressed = method.regressor(case.inputs["f_s"])
        return {"regressed": (regressed.detach(), case.outputs["regressed"])}

from __future__ import annotations

from torch import Tensor

from adapters import BaseAdapter
from itrd.methods import create_method


class Adapter(BaseAdapter):
    def step_values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        weights = create_method("rkd").term_weights()
        own = {key: terms[f"rkd.{key}"] for key in weights}
        values = super().step_values(terms)
        return {**values, "kd": float(sum(weights[key] * value for key, value in own.items()))}

"""How each reference file's inputs and names map onto our methods.

A method whose file needs nothing special needs no adapter. Otherwise ``adapters/<name of the file>.py``
defines ``class Adapter(BaseAdapter)``.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from itrd.methods import ALIASES, METHODS, Batch, Method, Setup, create_method
from itrd.methods.objective import Objective
from itrd.models.base import Outputs


@dataclass
class Case:
    """One case of a losses file in one precision; gradients are wanted of ``wanted`` inputs."""

    name: str
    info: dict[str, Any]
    inputs: dict[str, Tensor]
    params: dict[str, Tensor]
    outputs: dict[str, Tensor]  # out/..., of this precision where there are two
    dtype: torch.dtype


@dataclass
class Computed:
    """What our method makes of a case: value, and the tensors whose gradients are compared, by golden name."""

    loss: Tensor
    leaves: dict[str, Tensor]
    others: dict[str, tuple[Tensor, Tensor]]  # further outputs: ours, expected


class BaseAdapter:
    """Embeddings (2-D inputs), maps (4-D) or logits in; one value out."""

    name: str

    def __init__(self, name: str) -> None:
        self.name = name

    # --- losses ------------------------------------------------------------------------------------------

    def settings(self, args: dict[str, Any]) -> dict[str, Any]:
        """Settings of our method from the file's ``args``; default: those of the same name."""
        known = create_method(self.name).settings()
        return {key: value for key, value in args.items() if key in known}

    def loss_key(self, key: str) -> str:
        """Name in a losses file of a parameter that our method calls ``key``."""
        return key

    def side(self, inputs: dict[str, Tensor], side: str) -> Outputs:
        """Outputs of student (``s``) or teacher (``t``) from the inputs of a case."""
        first = next(iter(inputs.values()))
        logits = inputs.get(f"logits_{side}", torch.zeros(len(first), 2, dtype=first.dtype))
        single = inputs.get(f"f_{side}")
        numbered = [inputs[k] for k in sorted(inputs, key=_number) if k.startswith(f"f_{side}.")]
        if single is not None and single.ndim == 2:
            return Outputs(logits, single)
        return Outputs(logits, None, tuple(numbered) if single is None else (single,))

    def batch(self, case: Case) -> Batch:
        """Labels and indices of a case."""
        n = len(next(iter(case.inputs.values())))
        return Batch(case.inputs.get("target", torch.zeros(n, dtype=torch.long)), torch.arange(n))

    def networks(self, case: Case) -> tuple[nn.Module, nn.Module]:
        """Student and teacher networks for the set-up of a method that asks them for more than outputs."""
        return nn.Identity(), nn.Identity()

    def build(self, case: Case) -> Method:
        """Create the method, build its modules and give them the case's parameters."""
        method = create_method(self.name, **self.settings(case.info["args"]))
        student, teacher = self.side(case.inputs, "s"), self.side(case.inputs, "t")
        labels = self.batch(case).labels
        with torch.no_grad():
            method.setup(Setup(student, teacher, *self.networks(case), student.logits.shape[1], labels))
        method = method.to(case.dtype).train()
        state = method.state_dict()
        names = {key: self.loss_key(key) for key in state}
        missing = [name for name in case.params if name not in names.values()]
        assert not missing, f"our {self.name} has no counterpart of {missing}"
        loaded = {key: case.params[name] for key, name in names.items() if name in case.params}
        method.load_state_dict({**state, **loaded})
        return method

    def value(self, method: Method, terms: dict[str, Tensor], case: Case) -> Tensor:
        """The file's value from our terms; default: their weighted sum."""
        return method.loss(terms)

    def compute(self, case: Case) -> Computed:
        """Run our method on a case."""
        method = self.build(case)
        terms = method(self.side(case.inputs, "s"), self.side(case.inputs, "t"), self.batch(case))
        leaves = {f"in/{name}": tensor for name, tensor in case.inputs.items()}
        leaves |= {f"param/{self.loss_key(k)}": p for k, p in method.named_parameters()}
        return Computed(self.value(method, terms, case), leaves, self.others(method, case))

    def others(self, method: Method, case: Case) -> dict[str, tuple[Tensor, Tensor]]:
        """Further outputs to compare: name -> (ours, expected)."""
        return {}

    # --- trajectories ------------------------------------------------------------------------------------

    def trajectory_key(self, key: str) -> tuple[str, str]:
        """Extra module and key in a trajectory of what our method calls ``key``."""
        module, _, rest = self.loss_key(key).partition(".")
        return module, rest

    def trajectory_settings(self, run: dict[str, Any]) -> dict[str, Any]:
        """Settings of our method for a trajectory."""
        return {}

    def objective(self, run: dict[str, Any]) -> tuple[Objective, Method]:
        """The loss of a trajectory: r CE + a KD + b method."""
        weights = run["weights"]
        method = create_method(self.name, **self.trajectory_settings(run))
        kd = create_method("kd", T=run["kd_T"])
        return Objective([(weights["a"], kd), (weights["b"], method)], weights["r"]), method

    def train_labels(self, run: dict[str, Any]) -> Tensor:
        """Labels of the imagined training set."""
        return torch.zeros(64, dtype=torch.long)

    def begin(self, run: dict[str, Any], method: Method, dtype: torch.dtype) -> None:
        """After set-up, before the first step."""

    def indices(self, run: dict[str, Any], method: Method, step: int) -> Tensor:
        """Dataset indices of a step's samples."""
        return torch.arange(run["batch_size"])

    def step_values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """The file's per-step values from our logged terms (unweighted, with the method's prefix)."""
        values = {k: float(v) for k, v in terms.items()}
        own = [v for k, v in values.items() if k == self.name or k.startswith(f"{self.name}.")]
        renamed = {"total": values["loss"], "kd": sum(own)}
        if "ce" in values:
            renamed["ce"] = values["ce"]
        if "kd" in values:
            renamed["kl"] = values["kd"]
        return renamed

    def finals(self, run: dict[str, Any], method: Method) -> dict[str, float]:
        """Further values after the last step, by their name in the file."""
        return {}


def adapter_for(golden_name: str) -> BaseAdapter | None:
    """The adapter of a reference file's method, or None if we do not have the method."""
    has_file = importlib.util.find_spec(f"adapters.{golden_name}") is not None
    if has_file:
        return importlib.import_module(f"adapters.{golden_name}").Adapter(golden_name)
    if golden_name in METHODS or golden_name in ALIASES:
        return BaseAdapter(golden_name)
    return None


def _number(key: str) -> tuple[str, int]:
    head, _, tail = key.rpartition(".")
    return (head, int(tail)) if tail.isdigit() else (key, -1)

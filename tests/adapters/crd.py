from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters import BaseAdapter, Case, Computed
from itrd.methods import Batch, Method, Setup, create_method
from itrd.models.base import Outputs


class Adapter(BaseAdapter):
    """Files hold the indices of the contrasts: the memory is told to draw these."""

    def settings(self, args: dict[str, Any]) -> dict[str, Any]:
        same = {key: args[key] for key in ("feat_dim", "K", "momentum", "mode")}
        return {**same, "T": args.get("temperature", args.get("T"))}

    def loss_key(self, key: str) -> str:
        return key.replace("embed_s.", "embed_s.linear.").replace("embed_t.", "embed_t.linear.")

    def compute(self, case: Case) -> Computed:
        """Three consecutive calls; below forward(), which detaches the teacher's outputs."""
        args = case.info["args"]
        method = create_method("crd", **self.settings(args))
        zeros = [torch.zeros(2, args[key]) for key in ("s_dim", "t_dim")]
        outputs = [Outputs(torch.zeros(2, 2), embedding) for embedding in zeros]
        labels = torch.arange(args["n_data"]) % 2
        method.setup(Setup(*outputs, torch.nn.Identity(), torch.nn.Identity(), 2, labels))
        method = method.to(case.dtype).train()
        with torch.no_grad():
            for key, parameter in method.named_parameters():
                parameter.copy_(case.params[self.loss_key(key)])
            method.memory.student.copy_(case.outputs["memory_student_before"])
            method.memory.teacher.copy_(case.outputs["memory_teacher_before"])
        losses, others = [], {}
        for step in range(3):
            contrast, indices = case.inputs[f"contrast_index.{step}"], case.inputs[f"index.{step}"]
            method.memory.draw = lambda indices, contrast=contrast: contrast
            f_s, f_t = case.inputs[f"f_s.{step}"], case.inputs[f"f_t.{step}"]
            batch = Batch(torch.zeros(len(f_s), dtype=torch.long), indices)
            terms = method.terms(Outputs(f_s[:, :2], f_s), Outputs(f_t[:, :2], f_t), batch)
            losses.append(terms["crd"])
            for side in ("student", "teacher"):
                ours = getattr(method.memory, side).clone()
                others[f"{side}'s memory after call {step}"] = (
                    ours,
                    case.outputs[f"memory_{side}_after.{step}"],
                )
        for ours, theirs in zip(losses, case.info["terms"], strict=True):
            others[f"loss {len(others)}"] = (ours.detach().float(), torch.tensor(theirs))
        for normalizer, key in ((method.normalizer_s, "Z_v1"), (method.normalizer_t, "Z_v2")):
            others[key] = (normalizer.log_z.exp(), torch.tensor(case.info[key], dtype=case.dtype))
        leaves = {f"in/{key}": tensor for key, tensor in case.inputs.items()}
        leaves |= {f"param/{self.loss_key(key)}": p for key, p in method.named_parameters()}
        return Computed(torch.stack(losses).sum(), leaves, others)

    def trajectory_settings(self, run: dict[str, Any]) -> dict[str, Any]:
        return {**self.settings({"mode": "exact", **run["crd"]})}

    def train_labels(self, run: dict[str, Any]) -> Tensor:
        return torch.arange(run["crd"]["n_data"]) % 2

    def begin(self, run: dict[str, Any], method: Method, dtype: torch.dtype) -> None:
        """Give the memories of the file."""
        n, d, seed = run["crd"]["n_data"], run["crd"]["feat_dim"], run["crd"]["memory_seed"]
        bound = 1 / np.sqrt(d / 3)
        for number, bank in enumerate((method.memory.student, method.memory.teacher)):
            values = np.random.default_rng([seed, 900005, number]).random((n, d)) * 2 * bound - bound
            bank.copy_(torch.from_numpy(values.astype(np.float32)))

    def indices(self, run: dict[str, Any], method: Method, step: int) -> Tensor:
        """Dataset indices of a step's samples; the memory will draw the file's negatives for them."""
        seed, n, size = run["seeds"]["data"], run["crd"]["n_data"], run["batch_size"]
        indices = torch.from_numpy(np.random.default_rng([seed, 900003, step]).permutation(n)[:size])
        drawn = np.random.default_rng([seed, 900004, step]).integers(0, n, (size, run["crd"]["K"]))
        contrast = torch.cat([indices[:, None], torch.from_numpy(drawn)], dim=1)
        method.memory.draw = lambda indices: contrast
        return indices

    def finals(self, run: dict[str, Any], method: Method) -> dict[str, float]:
        return {
            "Z_v1": float(method.normalizer_s.log_z.exp()),
            "Z_v2": float(method.normalizer_t.log_z.exp()),
            "memory_student_l2_after": float(method.memory.student.norm()),
            "memory_teacher_l2_after": float(method.memory.teacher.norm()),
        }

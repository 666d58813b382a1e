from __future__ import annotations

import torch

from adapters import BaseAdapter, Case, Computed
from itrd.methods.kdsvd import kdsvd_loss, teacher_vectors


class Adapter(BaseAdapter):
    """The file's teacher vectors have the signs that its SVD routine gave; ours are turned to agree."""

    def compute(self, case: Case) -> Computed:
        student, teacher = self.side(case.inputs, "s"), self.side(case.inputs, "t")
        ours = [teacher_vectors(f, case.info["args"]["k"]) for f in teacher.maps]
        theirs = [case.outputs[f"teacher_v.{i}"] for i in range(len(ours))]
        turned = [
            v * torch.where((v * w).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
            for v, w in zip(ours, theirs, strict=True)
        ]
        leaves = {f"in/{name}": tensor for name, tensor in case.inputs.items()}
        others = {
            f"teacher_v.{i}": (v, w.to(v.dtype)) for i, (v, w) in enumerate(zip(turned, theirs, strict=True))
        }
        return Computed(kdsvd_loss(student.maps, turned), leaves, others)

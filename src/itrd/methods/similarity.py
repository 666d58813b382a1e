"""SP: samples that are similar for the teacher are similar for the student."""

from __future__ import annotations

from torch import Tensor

from itrd.methods.base import Batch, Method
from itrd.methods.functional import normalize_rows, tame
from itrd.models.base import Outputs


class Similarity(Method):
    """Similarity-Preserving Knowledge Distillation (Tung, Mori, ICCV 2019, arXiv 1907.09682).

    With F the last map, each sample flattened to a row (B, D),

        G = F F^T with rows normalised to length 1,    L = (1 / B^2) sum_ij (G_t,ij - G_s,ij)^2.

    The two D may differ.

    Deviation of the published benchmark code, which this follows, from the paper: the paper sums over
    several layers, the code uses the last map only, which of a wide ResNet is a raw sum, before batch norm and
    activation.

    Degenerate input: a row of G of length below 1e-12 (a zero sample) becomes zero with zero gradient.
    """

    name = "similarity"
    title = "SP"
    paper = "Tung, Mori, ICCV 2019, arXiv 1907.09682"
    formula = "L = ||G_t - G_s||_F^2 / B^2,  G = F F^T with unit rows"
    reads = frozenset({"maps"})
    weight = 3000.0

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"similarity": scalar}`` for maps (B, C_i, H_i, W_i), of which the last is read."""
        return {"similarity": similarity_loss(student.maps[-1], teacher.maps[-1])}


def similarity(f: Tensor) -> Tensor:
    """G of features (B, ...): (B, B)."""
    rows = tame(f.flatten(1), whole=True)
    return normalize_rows(rows @ rows.T)


def similarity_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """L of two features (B, ...); scalar."""
    return (similarity(f_t) - similarity(f_s)).square().mean()

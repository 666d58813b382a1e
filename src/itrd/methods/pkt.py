"""PKT: the probability that a sample has another as its neighbour is the teacher's."""

from __future__ import annotations

from torch import Tensor

from itrd.methods.base import Batch, Method
from itrd.methods.functional import tame
from itrd.models.base import Outputs

EPS = 1e-7


class PKT(Method):
    """Probabilistic Knowledge Transfer (Passalis, Tefas, ECCV 2018, arXiv 1803.10837).

    For embeddings with rows n = e / (||e|| + eps), eps = 1e-7,

        S = (n n^T + 1) / 2 with every row divided by its sum,
        L = mean_ij S_t,ij log((S_t,ij + eps) / (S_s,ij + eps)).

    Where the published benchmark code, which this follows, differs from the paper: the paper's conditional
    probabilities leave out i = j, the code keeps the diagonal; mean instead of sum over pairs, hence the
    weight of 30000.

    Degenerate input: a zero row has n = 0 and gradient 0, where the published code's gradient is NaN (square
    root at 0). A cosine that rounding puts below -1 counts as -1.
    """

    name = "pkt"
    title = "PKT"
    paper = "Passalis, Tefas, ECCV 2018, arXiv 1803.10837"
    formula = "L = mean S_t log((S_t + eps) / (S_s + eps)),  S = (cos + 1) / 2 with rows summing to 1"
    reads = frozenset({"embedding"})
    weight = 30000.0

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"pkt": scalar}`` for embeddings (B, D_s), (B, D_t)."""
        assert student.embedding is not None
        assert teacher.embedding is not None
        s, t = neighbours(student.embedding), neighbours(teacher.embedding)
        return {"pkt": (t * ((t + EPS) / (s + EPS)).log()).mean()}


def neighbours(e: Tensor) -> Tensor:
    """S of embeddings (B, D): conditional probabilities (B, B), rows sum to 1."""
    e = tame(e)
    n = e / (e.norm(dim=1, keepdim=True) + EPS)
    s = ((n @ n.T + 1) / 2).clamp(min=0)
    return s / s.sum(dim=1, keepdim=True)

"""What the methods with a first stage or a warm-up share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from itrd.errors import UserError


def check_epochs(method: str, setting: str, epochs: int) -> int:
    """Return a number of epochs.

    Raises:
        UserError: it is negative.
    """
    if epochs < 0:
        raise UserError(f"{method}: {setting} must be 0 or a number of epochs, got {epochs}")
    return epochs


def check_same_maps(method: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """Refuse two networks with unequal numbers of maps.

    Raises:
        UserError: names the methods that do not pair maps.
    """
    if len(student) != len(teacher):
        raise UserError(
            f"method {method!r} pairs the maps of the two networks one by one, but the student has "
            f"{len(student)} and the teacher {len(teacher)}; methods that read the embedding or the logits "
            "(itrd, crd, rkd, pkt, kd) work for this pair"
        )


def feature_modules(method: str, student: Sequence[nn.Module]) -> nn.Module:
    """Return the modules of a student that a first stage trains; ``student`` is empty before ``setup()``.

    Raises:
        UserError: the student does not name them.
    """
    if not student:
        raise UserError(f"{method}: call setup() with example outputs before the first stage")
    modules = getattr(student[0], "get_feat_modules", None)
    if modules is None:
        raise UserError(
            f"method {method!r} trains the student below its classifier first and asks it for these modules; "
            f"{type(student[0]).__name__} has no get_feat_modules()"
        )
    return modules()

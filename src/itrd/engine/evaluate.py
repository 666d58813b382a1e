"""Accuracy of a network on a set of images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd.data.source import ImageSource
from itrd.engine.device import autocast
from itrd.engine.metrics import hits
from itrd.engine.team import ALONE, Team
from itrd.errors import UserError
from itrd.methods.base import at_least_float32
from itrd.models.observe import in_eval_mode, logits_of


@torch.no_grad()
def evaluate(
    net: nn.Module,
    images: ImageSource,
    precision: str = "fp32",
    batch_size: int | None = None,
    team: Team = ALONE,
    *,
    finite: bool = False,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent and mean cross-entropy (``top1``, ``top5``, ``loss``).

    The network is called plainly on unaugmented images, in eval mode; then every module has its mode back. The
    processes of a team, which all call this, take turns in the batches. Without images there is nothing to tell:
    ``{}``. An image whose largest logit is not finite is not counted as right.

    Args:
        net: the network.
        images: with labels.
        precision: fp32, tf32 (see :func:`itrd.engine.device.set_float32`) or bf16.
        batch_size: images per forward pass; None for 500 of up to 64 x 64 pixels (2,000 on a GPU), and
            fewer larger ones.
        team: the processes that share the work.
        finite: refuse logits that are not finite.

    Raises:
        UserError: the network has fewer classes than the images, or gives logits that are not finite.
    """
    if not len(images):
        return {}
    # Of images right by top-1, by top-5, losses, images that are not finite, and images: counted, so that equal
    # accuracies are equal numbers.
    sums = torch.zeros(5, dtype=torch.float64, device=images.device)
    for logits, labels in _outputs(net, images, precision, batch_size, team):
        loss = F.cross_entropy(logits, labels).double() * len(labels)
        whole = logits.amax(dim=1).isfinite()  # a class may be ruled out with minus infinity
        right = hits(logits, labels.where(whole, -1))  # topk takes NaN for the largest
        broken = (~whole).sum()
        sums += torch.stack([*right.values(), loss, broken, torch.full_like(loss, len(labels))])
    team.sum([sums])
    top1, top5, losses, wrong, count = sums.tolist()
    if finite and wrong:
        raise UserError(
            f"the network gives logits that are not finite for {int(wrong):,} of {int(count):,} images, so its "
            "accuracy says nothing; its weights are damaged, or its images are of another kind: use another one"
        )
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": losses / count}


@torch.no_grad()
def confusion(
    net: nn.Module, images: ImageSource, precision: str = "fp32", batch_size: int | None = None
) -> Tensor:
    """Count how often the images of a class (row) are taken for which class (column): (K, K) int64, on the CPU.

    Args:
        net, images, precision, batch_size: as of :func:`evaluate`; at least one image.

    Raises:
        UserError: the network has fewer classes than the images.
    """
    counts: Tensor | None = None
    for logits, labels in _outputs(net, images, precision, batch_size, ALONE):
        k = logits.shape[1]
        if counts is None:
            counts = torch.zeros(k * k, dtype=torch.int64, device=images.device)
        counts.index_add_(0, labels * k + logits.argmax(dim=1), torch.ones_like(labels))
    assert counts is not None, "there are no images"
    return counts.view(k, k).cpu()


def _outputs(
    net: nn.Module, images: ImageSource, precision: str, batch_size: int | None, team: Team
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and labels of this process's batches; see :func:`evaluate`."""
    if batch_size is None:
        most = 2000 if images.device.type == "cuda" else 500  # launches cost a GPU more than memory
        batch_size = max(32, min(most, most * 64 * 64 // (images.shape[1] * images.shape[2])))
    highest = int(images.labels.max())  # beyond the classes of a network, a GPU's error ends the process
    batches = torch.arange(len(images), device=images.device).split(batch_size)
    with in_eval_mode(net):
        for indices in batches[team.rank :: team.size]:
            with autocast(images.device, precision):
                logits = logits_of(net(images.plain(indices)))
            if logits.shape[1] <= highest:
                raise UserError(
                    f"the network gives logits of {logits.shape[1]} classes, and a label of the images is {highest}; "
                    "give it a classifier for these"
                )
            yield at_least_float32(logits), images.labels[indices]

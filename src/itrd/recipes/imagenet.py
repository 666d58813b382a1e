"""ResNet-34 to ResNet-18 on ImageNet: the schedule is ``imagenet.yaml``, here are the losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MDISTILLER = "mdistiller's settings for ResNet-34 to ResNet-18"
_SCALED = f"{_MDISTILLER} (there 0.2 and batches of 512, the same rate per image)"

NAMED = ("imagenet",)  # settings files that come with the package


@dataclass(frozen=True)
class ImagenetLoss:
    """The loss of a row of the published ImageNet tables.

    Attributes:
        loss: the whole loss in the notation of :mod:`itrd.methods.expression`.
        source: where the settings come from.
        top1: the published accuracy in percent, which the authors may have reached with other settings; None where
            none is known here.
    """

    loss: str
    source: str
    top1: float | None = None


# Row of the tables -> loss. Nobody has run these here.
IMAGENET_LOSSES = {
    "KD": ImagenetLoss("0.5*ce + 0.5*kd(T=1.0)", _SCALED, 70.66),
    "AT": ImagenetLoss("1.0*ce + 1000.0*attention", f"{_SCALED}, the weight is its default"),
    "CRD": ImagenetLoss("1.0*ce + 0.8*crd", f"{_MDISTILLER}, the weight is its default", 71.17),
    "ReviewKD": ImagenetLoss(
        "1.0*ce + 1.0*reviewkd(warmup_epochs=1)",
        f"{_MDISTILLER} (there the student's maps are those before their activation)",
        71.61,
    ),
    "DKD": ImagenetLoss("1.0*ce + 1.0*dkd(alpha=1.0, beta=0.5, T=1.0, warmup=1)", _SCALED, 71.70),
    "DIST": ImagenetLoss(
        "1.0*ce + 1.0*dist(beta=1.0, gamma=1.0, T=1.0)", "paper; it has beta = gamma = 1 and 2", 72.07
    ),
    "WTTM": ImagenetLoss(
        "1.0*ce + 4.0*wttm(g=0.2)",
        "own choice: the published CIFAR-100 command's; those for ImageNet are not known here",
        72.19,
    ),
    "ITRD": ImagenetLoss(
        "1.0*ce + 1.0*itrd(alpha=1.01, lambda_corr=2.0, lambda_mutual=1.0)",
        "own choice: the published commands for CIFAR-100 pairs of one architecture; none is published for ImageNet",
        71.68,
    ),
}


def settings_file(name: str) -> str:
    """Return the path of the settings that come with the package under a name; any other path as it is."""
    if name in NAMED and not Path(name).exists():
        return str(Path(__file__).with_name(f"{name}.yaml"))
    return name

"""What every benchmark network offers: logits, and on request everything a method may read."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

from torch import Tensor, nn


class Outputs(NamedTuple):
    """What one forward pass of a network gives to a distillation method.

    Attributes:
        logits: (B, K), no softmax.
        embedding: (B, D), the pooled penultimate vector that enters the classifier.
        maps: feature maps (B, C_i, H_i, W_i), shallow to deep.
        stem: (B, C_0, H_0, W_0), output of the stem.
    """

    logits: Tensor
    embedding: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    stem: Tensor | None = None

    def only(self, reads: Container[str]) -> Outputs:
        """Leave out the features that are not named in ``reads``; the logits stay."""
        return Outputs(
            self.logits,
            self.embedding if "embedding" in reads else None,
            self.maps if "maps" in reads else (),
            self.stem if "stem" in reads else None,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Apply a function to every tensor."""
        return Outputs(
            function(self.logits),
            None if self.embedding is None else function(self.embedding),
            tuple(function(m) for m in self.maps),
            None if self.stem is None else function(self.stem),
        )


class FeatureNet(nn.Module):
    """A classifier that shows its intermediate features.

    Subclasses implement :meth:`features` and :meth:`classify`, and list the modules that the
    two-stage methods train (:meth:`get_feat_modules`). A map that was returned is never modified
    afterwards.

    Attributes:
        arch: the public name, set by :func:`itrd.models.create_model`; empty when built by hand.
        num_classes: number of classes K.
    """

    arch: str = ""
    num_classes: int

    def features(self, images: Tensor, preact: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Return ``(stem, maps, embedding)`` for images (B, 3, H, W).

        With ``preact`` the maps are taken before their ReLU where the architecture has one.
        """
        raise NotImplementedError

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, D) to logits (B, K)."""
        raise NotImplementedError

    def forward(
        self, images: Tensor, is_feat: bool = False, preact: bool = False
    ) -> Tensor | tuple[list[Tensor], Tensor]:
        """Logits, or ``([stem, *maps, embedding], logits)`` with ``is_feat``.

        ``preact`` has no effect without ``is_feat``; logits are the same in all three calls.
        """
        stem, maps, embedding = self.features(images, preact and is_feat)
        logits = self.classify(embedding)
        return ([stem, *maps, embedding], logits) if is_feat else logits

    def observe(self, images: Tensor, preact: bool = False) -> Outputs:
        """Logits, embedding, maps and stem by name; see :class:`Outputs`."""
        stem, maps, embedding = self.features(images, preact)
        return Outputs(self.classify(embedding), embedding, maps, stem)

    def get_feat_modules(self) -> nn.ModuleList:
        """Return the modules below the classifier that first stages (AB, FSP) train."""
        raise NotImplementedError

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the batch norms whose outputs are the pre-activation maps (for OFD's margins).

        Raises:
            NotImplementedError: the architecture has no such list (ShuffleNets).
        """
        raise NotImplementedError


def name_of(net: object) -> str:
    """Return a network's public name, or its class's where it has none."""
    arch = getattr(net, "arch", "")
    return arch if isinstance(arch, str) and arch else type(net).__name__

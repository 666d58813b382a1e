"""Networks compiled by torch.compile, and as they are where that fails."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from itrd.errors import first_line
from itrd.models.base import Outputs
from itrd.models.observe import Observer


class Compiled:
    """Runs a network compiled; after the first failure, as it is.

    Args:
        observe: runs the network, see :func:`itrd.models.observe.observer`.
        name: what the message about a failure calls it.
    """

    def __init__(self, observe: Observer, name: str) -> None:
        self._plain, self._name = observe, name
        self._compiled: Observer | None = torch.compile(observe)

    def __call__(self, images: Tensor, preact: bool) -> Outputs:
        """Run the network, as :data:`itrd.models.observe.Observer` says."""
        if self._compiled is None:
            return self._plain(images, preact)
        try:
            return self._compiled(images, preact)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of any compiler on the way
            outputs = self._plain(images, preact)  # what the network itself cannot do fails again
            self._compiled = None
            reason = first_line(error)
            print(f"the {self._name} cannot be compiled ({reason}); it runs as it is", file=sys.stderr)
            return outputs

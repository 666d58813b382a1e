"""Networks and losses compiled by torch.compile, and as they are where that fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

from itrd.errors import first_line

P = ParamSpec("P")
T = TypeVar("T")


class Compiled(Generic[P, T]):
    """Calls a function of tensors compiled; after the first failure, as it is.

    The first call is always of the function as it is: there methods look at what they are given, in Python.

    Args:
        function: what runs a network, or computes a loss.
        name: what the message about a failure calls it.
    """

    def __init__(self, function: Callable[P, T], name: str) -> None:
        self._plain, self._name = function, name
        # Random numbers stay those that torch draws.
        self._compiled: Callable[P, T] | None = torch.compile(function, options={"fallback_random": True})
        self._first = True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function."""
        if self._compiled is None or self._first:
            self._first = False
            return self._plain(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of any compiler on the way
            result = self._plain(*args, **kwargs)  # what the function itself cannot do fails again
            self._compiled = None
            reason = first_line(error)
            print(f"the {self._name} cannot be compiled ({reason}); it runs as it is", file=sys.stderr)
            return result

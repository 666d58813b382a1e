"""What `torchrun` tells the processes that it starts. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One process among those of a run.

    Attributes:
        rank: number of the process, from 0.
        size: how many there are, on all machines.
        local_rank: number of the process among those of its machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched() -> Launch:
    """Read the environment that torchrun makes; without it, this is the only process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "MASTER_ADDR" not in os.environ or not all(name in os.environ for name in names):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in names))

"""Independent random streams from one seed, the same on every machine and Python version."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed for one purpose, for example ``derive(seed, "order", epoch)``.

    Streams of different names are independent, and none depends on what was drawn before: a run that is
    resumed needs no generator state for them.
    """
    text = repr((seed, *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

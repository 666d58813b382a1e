"""Changes valid files in a few places."""

from __future__ import annotations

import random
from collections.abc import Callable

EXTREMES = [b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\0\x80", b"\xff" * 8, b"\0\0\0\0\1\0\0\0"]


def mutated(draw: random.Random, seeds: list[bytes], tokens: list[bytes]) -> bytes:
    """Change a valid file in one to five places."""
    raw = bytearray(draw.choice(seeds))
    for _ in range(draw.choice([1, 1, 1, 2, 3, 5])):
        at = draw.randrange(len(raw) + 1)
        end = min(len(raw), at + draw.choice([1, 1, 2, 4, 8, 30]))
        kind = draw.randrange(9)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw[at:end] = draw.randbytes(end - at)
        elif kind == 2:
            raw[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 3:
            del raw[at:end]
        elif kind == 4:
            raw[at:at] = raw[at:end] * draw.choice([1, 2, 50])
        elif kind == 5:
            del raw[at:]
        elif kind == 6:
            extreme = draw.choice(EXTREMES)
            raw[at : at + len(extreme)] = extreme
        elif kind == 7:
            other = draw.choice(seeds)
            start = draw.randrange(len(other) + 1)
            raw[at:end] = other[start : start + draw.randrange(1, 60)]
        else:
            token = draw.choice(tokens)
            raw[at : at + draw.choice([0, len(token)])] = token
    return bytes(raw)


Format = tuple[Callable[[random.Random], bytes], Callable[[bytes], object]]

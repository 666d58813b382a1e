"""The recipe behind the reference numbers: weights, images and labels drawn from NumPy generators.

Everything is a function of integer seeds, so a folder of reference numbers needs to store results only.
The folder is ``tests/golden`` or the one named by the environment variable ``ITRD_GOLDEN``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(os.environ.get("ITRD_GOLDEN") or Path(__file__).parent / "golden")


def load_json(path: Path) -> dict:
    return json.loads(path.read_text())


def golden_files(folder: str, suffix: str = ".json") -> list[Path]:
    """All files of one kind, sorted; an empty folder is an error, not an empty test run."""
    files = sorted((GOLDEN / folder).glob(f"*{suffix}"))
    if not files:
        raise FileNotFoundError(f"no {suffix} file in {GOLDEN / folder}")
    return files


def recipe_tensor(key: str, shape: Iterable[int], seed: int, index: int, bn_gain: float) -> np.ndarray:
    """Draw one tensor of a state dict; ``index`` is the position of its key in the sorted state dict."""
    shape = tuple(shape)
    rng = np.random.default_rng([seed, index])
    if key.endswith("running_var"):
        x = 0.75 + 0.5 * rng.random(shape)
    elif key.endswith("running_mean"):
        x = 0.1 * rng.standard_normal(shape)
    else:
        x = rng.standard_normal(shape)
        if len(shape) >= 2:
            x = x * math.sqrt(2.0 / math.prod(shape[1:]))
        elif key.endswith("weight"):
            x = bn_gain * (1.0 + 0.1 * x)
        else:
            x = 0.1 * x
    return np.asarray(x, dtype=np.float32)


def fill(
    module: nn.Module, seed: int, bn_gain: float, rename: Callable[[str], str] = lambda key: key
) -> nn.Module:
    """Give a module the weights of the recipe, in place. ``rename`` maps our keys to the original ones."""
    state = module.state_dict()
    original = {rename(key): key for key in state}
    for index, name in enumerate(sorted(original)):
        tensor = state[original[name]]
        if not tensor.is_floating_point() or name.endswith("log_scale"):
            continue
        tensor.copy_(torch.from_numpy(recipe_tensor(name, tensor.shape, seed, index, bn_gain)))
    return module


def images(seed: int, n: int, step: int) -> Tensor:
    """Draw n already normalised 32x32 images, float32 (n, 3, 32, 32)."""
    rng = np.random.default_rng([seed, 900001, step])
    coarse = rng.standard_normal((n, 3, 4, 4))
    noise = rng.standard_normal((n, 3, 32, 32))
    x = coarse.repeat(8, axis=2).repeat(8, axis=3) + 0.5 * noise
    return torch.from_numpy(x.astype(np.float32))


def labels(seed: int, n: int, step: int, num_classes: int) -> Tensor:
    """Draw n labels, int64 (n,)."""
    return torch.from_numpy(np.random.default_rng([seed, 900002, step]).integers(0, num_classes, n))


def l2(tensor: Tensor | np.ndarray) -> float:
    """Euclidean norm in float64."""
    return float(torch.linalg.vector_norm(torch.as_tensor(tensor, dtype=torch.float64)))

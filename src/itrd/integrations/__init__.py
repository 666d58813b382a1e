"""Distillation inside the training loops that people have: plain PyTorch, Lightning, transformers.

Each module loads its library when it is imported, and says which extra to install where it is missing.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from itrd.errors import UserError

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: what is imported.
        extra: the extra of this package that brings it.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, and something it needs is not
        raise UserError(
            f"this needs {module}, which is not installed; install it with: pip install 'itrd[{extra}]'"
        ) from None

"""Optional libraries: imported where they are needed, named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from itrd.errors import UserError


def require(module: str, extra: str) -> Any:
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

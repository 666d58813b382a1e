"""Optional libraries: imported where they are needed, named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from itrd.errors import MissingLibraryError, first_line


def require(module: str, extra: str, *names: str) -> Any:
    """Import an optional library.

    Args:
        module: what is imported.
        extra: the extra of this package that brings it.
        names: what is used of it, where the library loads that only when it is asked for.

    Raises:
        MissingLibraryError: it is not installed, or cannot be imported; says how to install it.
    """
    try:
        found = importlib.import_module(module)
        for name in names:
            getattr(found, name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        install = f"pip install 'itrd[{extra}]'"
        if isinstance(error, ModuleNotFoundError) and _package(error.name or "") == _package(module):
            raise MissingLibraryError(
                f"this needs {module}, which is not installed; install it with: {install}"
            ) from None
        # It is there, and something that it needs is not, or is of another version.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise MissingLibraryError(
            f"this needs {module}, which is installed but cannot be imported ({first_line(first)}); install versions "
            f"that fit together with: {install.replace('install', 'install --upgrade')}"
        ) from error
    return found


def _package(module: str) -> str:
    return module.partition(".")[0]

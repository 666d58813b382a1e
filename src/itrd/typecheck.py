"""Settings of the types that their annotations name, checked where they enter. No torch here."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from itrd.errors import UserError


def check_types(owner: str, hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse a value that its annotation does not allow; an int passes for a float, infinity and NaN do not.

    Raises:
        UserError: names the setting, what it wants and what it got.
    """
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f"{owner}: {name} must be {in_words(hints[name])}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return True  # a type that only its owner can judge


def in_words(hint: Any) -> str:
    """Say what an annotation wants."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(option) for option in get_args(hint))
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if origin is list:
        return f"a list of {in_words(get_args(hint)[0]).removeprefix('a ')}s"
    names = {
        float: "a finite number",
        int: "a whole number",
        str: "a string",
        bool: "true or false",
        type(None): "none",
    }
    return names.get(hint, str(hint))

"""The notation for losses: ``kd``, ``itrd(alpha=1.5)``, ``kd + 0.8*crd``, ``0.1*ce + 0.9*kd(T=4)``.

A sum of terms; each term is a method's name, optionally with settings in parentheses, optionally times a
number. ``ce`` stands for the cross-entropy. Python's own parser reads it; only these shapes are accepted,
and nothing is evaluated.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from typing import Any

from itrd.errors import UnknownNameError, UserError

CROSS_ENTROPY = "ce"


@dataclass(frozen=True)
class Term:
    """One summand: ``weight`` is None where none was written."""

    name: str
    weight: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> list[Term]:
    """Parse the notation above.

    Raises:
        UserError: not of that form.
        UnknownNameError: a term that is neither a method nor ``ce``.
    """
    from itrd.methods import METHODS

    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _not_understood(text) from None
    terms = [_term(node, text) for node in _summands(tree, text)]
    for term in terms:
        if term.name != CROSS_ENTROPY and term.name not in METHODS:
            raise UnknownNameError("method", term.name, METHODS)
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise UserError(f"method {text!r} names a term twice")
    return terms


def _summands(node: ast.expr, text: str) -> list[ast.expr]:
    summands: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        if isinstance(node.op, ast.Sub):
            raise _negative(text)
        summands.append(node.right)
        node = node.left
    return [node, *reversed(summands)]


def _term(node: ast.expr, text: str) -> Term:
    from itrd.methods import ALIASES

    weight = None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        number, node = node.left, node.right
        if isinstance(number, ast.UnaryOp) and isinstance(number.op, ast.USub):
            raise _negative(text)
        if not isinstance(number, ast.Constant) or not isinstance(number.value, int | float):
            raise _not_understood(text)
        try:
            weight = float(number.value)
        except OverflowError:  # a whole number of hundreds of digits
            weight = math.inf
        if not math.isfinite(weight):
            raise UserError(f"method {text!r} has a weight that is not finite")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        raise _negative(text)
    settings: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise _not_understood(text)
        try:
            settings = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise _not_understood(text) from None
        node = node.func
    if not isinstance(node, ast.Name):
        raise _not_understood(text)
    return Term(ALIASES.get(node.id, node.id), weight, settings)


def _negative(text: str) -> UserError:
    return UserError(
        f"method {text!r} is not understood: weights are not negative; write a sum, for example kd + 0.8*itrd"
    )


def _not_understood(text: str) -> UserError:
    return UserError(
        f"method {text!r} is not understood; write for example: kd, itrd(alpha=1.5), kd + 0.8*itrd, 0.1*ce + 0.9*kd"
    )

"""Distillation methods by name. Importing this package does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, get_type_hints

from itrd.errors import UnknownNameError, UserError
from itrd.typecheck import check_types

if TYPE_CHECKING:
    from itrd.methods.base import Batch, FirstStage, Method, Setup
    from itrd.methods.objective import Objective

# One line per method: name -> "module:class". The command line, the catalogue, the reference tests and the
# benchmark all read this list.
METHODS: dict[str, str] = {
    "none": "none:NoDistillation",
    "kd": "kd:KD",
    "itrd": "itrd:ITRD",
    "hint": "hint:Hint",
    "attention": "attention:Attention",
    "similarity": "similarity:Similarity",
    "correlation": "correlation:Correlation",
    "vid": "vid:VID",
    "rkd": "rkd:RKD",
    "pkt": "pkt:PKT",
    "nst": "nst:NST",
    "kdsvd": "kdsvd:KDSVD",
    "dkd": "dkd:DKD",
    "ofd": "ofd:OFD",
    "dist": "dist:DIST",
    "ttm": "ttm:TTM",
    "wttm": "wttm:WTTM",
    "logit_std": "logit_std:LogitStandardization",
    "abound": "abound:AB",
    "factor": "factor:FT",
    "fsp": "fsp:FSP",
    "crd": "crd:CRD",
    "wcord": "wcord:WCoRD",
    "reviewkd": "reviewkd:ReviewKD",
}

# Other names the field uses for them.
ALIASES: dict[str, str] = {
    "fitnet": "hint",
    "at": "attention",
    "sp": "similarity",
    "cc": "correlation",
    "ab": "abound",
    "ft": "factor",
}

__all__ = [
    "ALIASES",
    "METHODS",
    "Batch",
    "FirstStage",
    "Method",
    "Objective",
    "Setup",
    "create_method",
    "create_objective",
    "list_methods",
    "method_class",
]


def list_methods() -> list[str]:
    """Names that :func:`create_method` accepts."""
    return list(METHODS)


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        UnknownNameError: no such method; the message names the closest one.
    """
    name = ALIASES.get(name, name)
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    module, _, cls = METHODS[name].partition(":")
    return getattr(importlib.import_module(f"itrd.methods.{module}"), cls)


def create_method(name: str, **settings: Any) -> Method:
    """Create a method with the paper's defaults, or with the settings given.

    Args:
        name: one of :func:`list_methods`.
        settings: keyword arguments of the method's class, for example ``alpha=1.5``.

    Raises:
        UnknownNameError: no such method.
        UserError: no such setting, or a value the method refuses.
    """
    cls = method_class(name)
    known = cls.settings()
    for key in settings:
        if key not in known:
            raise UserError(f"method {name!r} has no setting {key!r}; it has: {', '.join(known) or 'none'}")
    check_types(f"method {name!r}", get_type_hints(cls.__init__), settings)
    return cls(**settings)


def create_objective(method: str | Method | Objective, ce_weight: float | None = None) -> Objective:
    """Turn ``"kd"``, ``"kd + itrd"``, ``"0.1*ce + 0.9*kd(T=4)"`` or a method into the student's loss.

    Args:
        method: a sum in the notation of :mod:`itrd.methods.expression`, a method, or an objective.
        ce_weight: weight of the cross-entropy; None for the rules of :class:`itrd.methods.objective.Objective`.

    Returns:
        The loss; call :meth:`~itrd.methods.objective.Objective.setup` before using it. A given method becomes a part of
        it, not a copy; a given objective is returned itself where ``ce_weight`` is None.

    Raises:
        UserError: it is of another type, the notation is not understood, a method refuses a setting, a weight is no
            finite number, or negative, or the cross-entropy has two weights.
        UnknownNameError: no such method.
    """
    from itrd.methods.objective import Objective

    return Objective.create(method, ce_weight)


def __getattr__(name: str) -> Any:
    if name in ("Batch", "FirstStage", "Method", "Setup"):
        return getattr(importlib.import_module("itrd.methods.base"), name)
    if name == "Objective":
        return importlib.import_module("itrd.methods.objective").Objective
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""itrd: knowledge distillation, run, checked and compared.

    import itrd

    net = itrd.create_model("wrn_16_2", num_classes=100)
    method = itrd.create_method("itrd", alpha=1.01)
    result = itrd.distill(teacher, student, data="cifar100", method=method)

Importing the package is cheap; torch is loaded when it is first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from itrd.data import list_datasets, load_dataset
from itrd.methods import create_method, create_objective, list_methods
from itrd.models import create_model, list_models

if TYPE_CHECKING:
    from itrd.api import describe_taps, distill, evaluate, train
    from itrd.export import export_model
    from itrd.integrations.distiller import Distiller

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "create_method",
    "create_model",
    "create_objective",
    "describe_taps",
    "distill",
    "evaluate",
    "export_model",
    "list_datasets",
    "list_methods",
    "list_models",
    "load_dataset",
    "train",
]


# Names whose modules load torch -> module.
_LAZY = {
    "Distiller": "itrd.integrations.distiller",
    "describe_taps": "itrd.api",
    "distill": "itrd.api",
    "evaluate": "itrd.api",
    "export_model": "itrd.export",
    "train": "itrd.api",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

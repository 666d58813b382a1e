"""Makes torchvision importable where its compiled half is missing (there is no CPU build beside every torch).

Only the operators that torchvision describes while it is imported are declared; nothing here implements one.
Import this before torchvision or timm. In a subprocess: ``PYTHONPATH=tests python -c "import torchvision_ops; ..."``.
"""

from __future__ import annotations

import torch

_NEEDED = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _compiled() -> bool:
    try:
        import torchvision.extension
    except (ImportError, RuntimeError):
        return False
    return bool(torchvision.extension._has_ops())


if not _compiled():
    _LIBRARY = torch.library.Library("torchvision", "DEF")  # kept: the operators live as long as it does
    for _name, _schema in _NEEDED.items():
        _LIBRARY.define(_name + _schema)

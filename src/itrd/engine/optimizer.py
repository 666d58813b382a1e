"""The optimiser: SGD, as one kernel on a GPU, with a learning rate that a captured step reads from memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from itrd.engine.config import RunConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: RunConfig, device: torch.device
) -> torch.optim.SGD:
    """Build the optimiser of a stage; its learning rate is set by :func:`set_rate`."""
    fused = device.type == "cuda"
    trained = list(parameters)
    optimizer = torch.optim.SGD(
        trained,
        lr=torch.zeros((), device=device) if fused else 0.0,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=fused,
    )
    if config.max_grad_norm is not None:
        limit = config.max_grad_norm

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(trained, limit)

        optimizer.register_step_pre_hook(clip)  # behind the check for numbers that are not finite
    _give_momenta(optimizer)
    return optimizer


def _give_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Begin with momenta of zero, which are as good as none; but the fused kernel takes those of all parameters or of
    none, and a layer that is left out of the first step has none later.
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                held = optimizer.state[parameter]
                if held.get("momentum_buffer") is None:
                    held["momentum_buffer"] = torch.zeros_like(parameter)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Restore a saved state; where and how the optimiser computes stays its own.

    Raises:
        ValueError: the state is not one of these parameters.
    """
    own = [{key: group[key] for key in ("lr", "fused", "foreach")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)
    _give_momenta(optimizer)
    for parameter, held in optimizer.state.items():
        momentum = held.get("momentum_buffer")
        if momentum is not None and momentum.shape != parameter.shape:
            raise ValueError("momentum of another shape")

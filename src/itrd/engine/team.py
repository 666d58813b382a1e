"""The processes of a run, and what they tell each other."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from itrd.engine.config import RunConfig
from itrd.engine.device import be_deterministic
from itrd.engine.launch import Launch, launched
from itrd.errors import PeerError, UserError, first_line

T = TypeVar("T")
C = TypeVar("C", bound=RunConfig)

# A process that waits longer than this for another one gives up.
PATIENCE = timedelta(minutes=30)


class Team:
    """The processes of a run. Alone, everything here does nothing.

    Args:
        launch: which process this is, of how many.
        control: a group on the CPU for what the hosts agree on; None for the default group.

    Attributes:
        rank: number of this process; the first one, 0, writes and prints.
        size: number of processes.
    """

    def __init__(self, launch: Launch, control: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size = launch.rank, launch.size
        self._local_rank = launch.local_rank
        self._control = control

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def lead(self, function: Callable[[], T]) -> T | None:
        """Call a function in the first process alone; return its value there and None elsewhere.

        Raises:
            PeerError: it failed, and this is another process. The first one raises what it raised.
        """
        if self.size == 1:
            return function()
        value, error = None, None
        if self.leads:
            try:
                value = function()
            except BaseException as raised:
                error = raised
        if self.most(error is not None) and error is None:
            raise PeerError
        if error is not None:
            raise error
        return value

    @contextmanager
    def one_by_machine(self) -> Iterator[None]:
        """Let the first process of each machine do something before the others of that machine do it.

        Raises:
            PeerError: it failed in the first process of some machine, and this is another process.
        """
        if self._local_rank and self.most(0):
            raise PeerError
        failed = True
        try:
            yield
            failed = False
        finally:
            if not self._local_rank and self.most(failed) and not failed:
                raise PeerError

    def most(self, number: int) -> int:
        """Return the largest of the processes' numbers, on the hosts."""
        if self.size == 1:
            return number
        found = torch.tensor(int(number))  # truth values, too: all must send the same type
        with _together():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return int(found)

    def share(self, value: T) -> T:
        """Return the first process's value, which is sent as a pickle from process to process."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        with _together():
            dist.broadcast_object_list(box, group=self._control)
        return box[0]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes: one reduction for each type of number."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            some = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in some])
            with _together():
                dist.all_reduce(flat)
            for tensor, total in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(total.view(tensor.shape))

    @torch.no_grad()
    def average_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Replace the running statistics of batch norms by their means over the processes.

        Running means are linear in what was seen, so that theirs are the whole batches' for parts of equal size; the
        running variances leave out the variance between the parts' means.
        """
        norms = [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]
        found = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
        if self.size > 1 and found:
            self.sum(found)
            torch._foreach_div_(found, self.size)

    @torch.no_grad()
    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by the first process's."""
        if self.size == 1:
            return
        for tensor in tensors:
            held = tensor.contiguous()
            with _together():
                dist.broadcast(held, src=0)
            tensor.copy_(held)

    def gather(self, part: Tensor, sizes: Sequence[int]) -> Tensor:
        """Put the processes' parts (n_r, ...) of a batch together: (sum n_r, ...).

        Args:
            part: of this process; rows beyond its size are left out.
            sizes: n_r of every process.

        The gradient of the own rows is multiplied by the number of processes: each of them computes the same loss, of
        which it then takes one share.
        """
        gathered: Tensor = _Gather.apply(part, tuple(sizes), self.rank)
        return gathered


ALONE = Team(Launch())


class _Gather(torch.autograd.Function):
    """See :meth:`Team.gather`."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.shape, ctx.sizes, ctx.rank = part.shape, sizes, rank  # type: ignore[attr-defined]
        own = part.new_zeros(max(sizes), *part.shape[1:])  # parts of equal size, as the transport wants them
        own[: sizes[rank]] = part[: sizes[rank]]
        parts = [torch.empty_like(own) for _ in sizes]
        with _together():
            dist.all_gather(parts, own)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        own = gradient.new_zeros(ctx.shape)
        size = ctx.sizes[ctx.rank]
        own[:size] = gradient.split(ctx.sizes)[ctx.rank] * len(ctx.sizes)
        return own, None, None


@contextmanager
def _together() -> Iterator[None]:
    """Say what it means when the processes fail to meet."""
    try:
        yield
    except RuntimeError as error:  # of any transport
        raise PeerError(first_line(error)) from error


# --- joining ---------------------------------------------------------------------------------------------


def join(config: C) -> tuple[Team, C]:
    """Join the processes that torchrun started; alone without it.

    Returns:
        The team, and the settings with this process's own device.

    Raises:
        UserError: there are more processes than GPUs, or one GPU is named for all.
    """
    launch = launched()
    if launch.size == 1:
        return ALONE, config
    device = own_device(config.device, launch)
    if config.deterministic:
        be_deterministic(device)  # before a GPU is used for the first time
    return _join(device.type, launch), replace(config, device=str(device))


def own_device(name: str, launch: Launch) -> torch.device:
    """Choose a process's device: the CPU, or the GPU of its number on this machine.

    Raises:
        UserError: there is none, or the name leaves no choice.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UserError(
            f"each of several processes takes a GPU of its own; use --device cuda instead of {name}"
        )
    if torch.cuda.device_count() < launch.local_size:
        raise UserError(
            f"{launch.local_size} processes on this machine and {torch.cuda.device_count()} GPUs; start as many "
            "processes as there are GPUs, or use --device cpu"
        )
    return torch.device("cuda", launch.local_rank)


@cache
def _join(kind: str, launch: Launch) -> Team:
    """Join once: a process cannot leave and come again."""
    if kind == "cuda":
        torch.cuda.set_device(launch.local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    return Team(launch, dist.new_group(backend="gloo", timeout=PATIENCE))

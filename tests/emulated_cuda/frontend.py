"""The emulated device's ``torch.cuda``: what itrd, its tests and torch itself ask of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

DEVICES = int(os.environ["ITRD_EMULATED_CUDA"])
DEVICE = torch.ops.emulated_cuda  # device.cpp's functions


def install() -> None:
    """Put everything below in the place of what torch has for a GPU."""
    cuda, graphs = torch.cuda, torch.cuda.graphs
    for function in (
        *(is_available, device_count, _lazy_init, current_device, set_device, get_device_name, mem_get_info),
        *(get_device_capability, is_bf16_supported, memory_reserved, empty_cache, synchronize),
        *(set_sync_debug_mode, is_current_stream_capturing, current_stream, default_stream, stream),
        *(get_rng_state, set_rng_state, manual_seed_all, graph_pool_handle, graph, Stream, CUDAGraph),
    ):
        setattr(cuda, function.__name__, function)
    cuda.default_generators = tuple(DEVICE.default_generator(i) for i in range(DEVICES))
    cuda.amp.common.amp_definitely_not_available = lambda: False
    graphs.graph, graphs.CUDAGraph = graph, CUDAGraph
    torch.UntypedStorage.clone = _clone
    for function in (init_process_group, all_reduce, broadcast, all_gather):
        setattr(dist, function.__name__, function)


# ---- The device


def is_available() -> bool:
    return True


def device_count() -> int:
    return DEVICES


def _lazy_init() -> None:
    torch.cuda._initialized = True


def current_device() -> int:
    return DEVICE.current_device()


def set_device(device: Any) -> None:
    DEVICE.set_device(_index(device))


def _index(device: Any) -> int:
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return current_device() if index is None else index


def get_device_name(device: Any = None) -> str:
    return "emulated"


def get_device_capability(device: Any = None) -> tuple[int, int]:
    return 9, 0


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return 70 << 30, 80 << 30


def memory_reserved(device: Any = None) -> int:
    return 0


def empty_cache() -> None:
    DEVICE.refuse_in_capture("empty_cache")


def synchronize(device: Any = None) -> None:
    DEVICE.refuse_in_capture("synchronize")


def set_sync_debug_mode(mode: str) -> None:
    DEVICE.refuse_waits(mode == "error")


# ---- Streams, which have names only: everything is done when its call returns


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = torch.device("cuda", _index(device))

    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        synchronize()


_DEFAULT = [Stream(i) for i in range(DEVICES)]
_CURRENT = list(_DEFAULT)


def current_stream(device: Any = None) -> Stream:
    return _CURRENT[_index(device)]


def default_stream(device: Any = None) -> Stream:
    return _DEFAULT[_index(device)]


@contextmanager
def stream(stream: Stream) -> Iterator[None]:
    device, index = current_device(), stream.device.index
    before, _CURRENT[index] = _CURRENT[index], stream
    set_device(index)
    try:
        yield
    finally:
        _CURRENT[index] = before
        set_device(device)


# ---- Graphs


class CUDAGraph:
    number: int | None = None

    def replay(self) -> None:
        DEVICE.refuse_in_capture("replay")
        DEVICE.replay(self.number)

    def reset(self) -> None:
        if self.number is not None:
            DEVICE.forget(self.number)


def graph_pool_handle() -> tuple[int, int]:
    return 0, 1


def is_current_stream_capturing() -> bool:
    return DEVICE.is_capturing()


@contextmanager
def graph(
    cuda_graph: CUDAGraph,
    pool: tuple[int, int] | None = None,
    stream: Stream | None = None,
    capture_error_mode: str = "global",
) -> Iterator[None]:
    with torch.cuda.stream(stream or Stream()):
        if current_stream() in _DEFAULT:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        synchronize()
        DEVICE.capture_begin()
        try:
            yield
        except BaseException:
            DEVICE.forget(DEVICE.capture_end())  # ending it fails, too, and says less
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        cuda_graph.number = DEVICE.capture_end()


# ---- Random numbers


def get_rng_state(device: Any = None) -> Tensor:
    return torch.cuda.default_generators[_index(device)].get_state()


def set_rng_state(state: Tensor, device: Any = None) -> None:
    torch.cuda.default_generators[_index(device)].set_state(state)


def manual_seed_all(seed: int) -> None:
    for generator in torch.cuda.default_generators:
        generator.manual_seed(seed)


# ---- Storages, whose own function has a line for every kind of device


def _clone(storage: torch.UntypedStorage, original: Any = torch.UntypedStorage.clone) -> torch.UntypedStorage:
    if storage.device.type != "cuda":
        return original(storage)
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).clone().untyped_storage()


# ---- Processes: NCCL is gloo, which gets copies


def init_process_group(backend: str, *, original: Any = dist.init_process_group, **settings: Any) -> None:
    original("gloo" if backend == "nccl" else backend, **settings)


def _copy(tensor: Tensor, group: Any) -> Tensor:
    if group is None and tensor.device.type != "cuda":
        raise RuntimeError("No backend type associated with device type cpu")
    return tensor.detach().cpu()


def all_reduce(
    tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, original: Any = dist.all_reduce
) -> None:
    copy = _copy(tensor, group)
    original(copy, op, group=group)
    tensor.detach().copy_(copy)


def broadcast(tensor: Tensor, src: int, group: Any = None, original: Any = dist.broadcast) -> None:
    copy = _copy(tensor, group)
    original(copy, src, group=group)
    tensor.detach().copy_(copy)


def all_gather(
    tensors: list[Tensor], tensor: Tensor, group: Any = None, original: Any = dist.all_gather
) -> None:
    copies = [_copy(t, group) for t in tensors]
    original(copies, _copy(tensor, group), group=group)
    for target, copy in zip(tensors, copies, strict=True):
        target.detach().copy_(copy)

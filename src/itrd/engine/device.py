"""Devices and precisions."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from itrd.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(
            f"device {name!r} is not available here ({torch.cuda.device_count()} CUDA devices); use --device cpu"
        )
    return device


def be_deterministic(device: torch.device) -> None:
    """Make every operation of this process give the same bits each time, or raise where it cannot.

    The switches are torch's, and they are global; :func:`switches_kept` puts them back.

    Raises:
        UserError: it is too late, because cuBLAS looks at its variable at the first matrix product on a GPU.
    """
    variable = "CUBLAS_WORKSPACE_CONFIG"
    if device.type == "cuda" and variable not in os.environ and torch.cuda.is_initialized():
        raise UserError(
            "--deterministic comes too late for this process, which has used the GPU before; start a new one, or set "
            f"the environment variable {variable}=:4096:8 first"
        )
    os.environ.setdefault(variable, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def switches_kept() -> Iterator[None]:
    """Leave torch's global switches, which runs set, as they were."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    # Nothing but set_float32() touches these, on a GPU. Reading them fails once torch's newer switches were used.
    rounds = (cudnn.allow_tf32, matmul.allow_tf32) if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        cudnn.deterministic, cudnn.benchmark = before
        if rounds is not None:
            cudnn.allow_tf32, matmul.allow_tf32 = rounds


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the automatic-casting context of a precision: fp32 and tf32 (none) or bf16.

    Raises:
        UserError: no such precision.
    """
    if precision in ("fp32", "tf32"):
        return nullcontext()
    if precision != "bf16":
        raise UserError(f"no precision {precision!r}; choose fp32, tf32 or bf16")
    return torch.autocast(device.type, dtype=torch.bfloat16)


def set_float32(precision: str) -> None:
    """Say how this process multiplies float32 numbers on a GPU: rounded for tf32, otherwise in full.

    In bf16 runs only the losses are left in float32, and they are to be exact. Without this call, torch rounds in
    convolutions and does not in matrix products.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 numbers on a GPU in full, whatever :func:`set_float32` has said."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_float32("fp32")
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# Variables that choose what :func:`keep_freed_memory` would choose.
_MALLOC = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next step, for the rest of the process.

    glibc hands blocks above a threshold (128 KiB at first) back to the kernel as soon as they are freed. A step's
    feature maps are of some MiB: they would be mapped, zeroed and faulted in anew. glibc raises the threshold when it
    notices, sooner or later; here it is 32 MiB from the start, the most that it takes, and up to 1 GiB that is free
    stays with the process. With another C library, or where the user has set one of glibc's ``MALLOC_`` variables of
    these matters (``MALLOC_TRIM_THRESHOLD_``, say), nothing is changed.
    """
    if any(name in os.environ for name in _MALLOC):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux, or another C library
        return
    mmap_threshold, trim_threshold = -3, -1  # their numbers in malloc.h
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 1 << 30)


def fast_precision(device: torch.device) -> str:
    """Return ``bf16`` where the hardware multiplies it natively, else ``fp32``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            probe = getattr(torch.cpu, name, None)
            if probe is not None and probe():
                return "bf16"
    return "fp32"


def stream_of_its_own(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Return what enters a stream for one run: runs side by side overlap, and only such a stream can be captured."""
    if device.type != "cuda":
        return nullcontext
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # what was prepared so far
    return lambda: torch.cuda.stream(stream)

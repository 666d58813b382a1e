"""Where a step's time went, from the events of a profiler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from itrd.engine.profile import _spent


def event(name: str, start: float, end: float, *kernels: float, device: Any = DeviceType.CPU) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=device,
        time_range=SimpleNamespace(start=start, end=end),
        cpu_time_total=end - start,
        kernels=[SimpleNamespace(duration=duration) for duration in kernels],
    )


EVENTS = [
    event("itrd.student", 0, 100),
    event("aten::conv2d", 10, 20, 700, 300),
    event("itrd.backward", 100, 300),
    event("ConvolutionBackward0", 150, 160, 5000),  # from another thread
    event("aten::add", 350, 360, 9000),  # in no part
    event("itrd.student", 400, 500),
    event("aten::conv2d", 410, 420, 1000),
    event("itrd.student", 20, 2000, device=DeviceType.CUDA),  # the same part once more, as the device saw it
    event("conv_kernel", 30, 730, device=DeviceType.CUDA),
]


def test_kernels_belong_to_the_part_in_which_they_were_launched() -> None:
    assert _spent(EVENTS, on_gpu=True) == {"itrd.student": 2.0, "itrd.backward": 5.0}


def test_on_the_host_a_part_takes_its_own_time() -> None:
    assert _spent(EVENTS, on_gpu=False) == pytest.approx({"itrd.student": 0.2, "itrd.backward": 0.2})

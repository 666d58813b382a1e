"""Where a step's time went, from the events of a profiler."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from itrd.engine.config import TrainConfig
from itrd.engine.profile import _spent, _write, profile_run
from itrd.errors import UserError


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


@pytest.mark.parametrize(
    ("name", "why"), [("t", "a folder"), ("/dev/null", "no plain file"), ("/proc/t.json", "No such")]
)
def test_a_trace_that_cannot_be_written_is_refused_before_the_run(
    name: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(UserError, match=f"cannot write the trace .*{why}.*--profile"):
        profile_run(TrainConfig(model="none such"), tmp_path / name)
    assert (tmp_path / "t").is_dir()


WHOLE = b'{"traceEvents": []}\n'
ZIPPED = gzip.compress(WHOLE, mtime=0)  # without a clock: tests are named after what they are given


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.json", WHOLE, None),
        ("t.json.gz", ZIPPED, None),
        ("t.json", None, "disk may be full"),
        ("t.json", WHOLE[:-4], "disk may be full"),
        ("t.json.gz", ZIPPED[:-4], "disk may be full"),
        ("t.json.gz", gzip.compress(WHOLE[:-4], mtime=0), "disk may be full"),
        ("t.json.gz", OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_a_trace_is_whole_or_not_there(
    name: str, content: bytes | OSError | None, complaint: str | None, tmp_path: Path
) -> None:
    def export(path: str) -> None:
        if isinstance(content, OSError):
            raise content
        if content is not None:
            Path(path).write_bytes(content)

    trace, recorder = tmp_path / name, SimpleNamespace(export_chrome_trace=export)
    trace.write_bytes(b"of before")
    if complaint is None:
        _write(recorder, trace)
        assert trace.read_bytes() == content
    else:
        with pytest.raises(UserError, match=complaint):
            _write(recorder, trace)
        assert trace.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [trace]
